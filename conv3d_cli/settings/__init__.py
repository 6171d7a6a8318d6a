"""What is asked for: the table of options, config files, presets, and how they are merged."""

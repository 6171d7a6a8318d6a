"""Settings of a command: the table of options, config files, presets, and how they are merged."""

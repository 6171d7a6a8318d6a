"""Where settings come from besides the command line: config files and presets."""

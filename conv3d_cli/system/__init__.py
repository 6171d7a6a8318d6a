"""Files, folders and the machine: outputs that appear whole, checks of inputs, digests, memory and CPUs."""

"""Files, folders and the machine: atomic outputs, checks of inputs, digests, memory and CPUs."""

"""The Keras Conv3D layer without its arithmetic: activations, initializers, regularizers, constraints, and the config."""

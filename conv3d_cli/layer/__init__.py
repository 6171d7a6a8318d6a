"""The Keras Conv3D layer: its activations (and, as they come, initializers, regularizers and constraints)."""

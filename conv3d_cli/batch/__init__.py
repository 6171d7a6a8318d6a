"""Many volumes: finding them, naming their outputs, manifests, what is done already, rules for make."""

"""Analysis of finished volumes: compare two, verify an output, estimate smoothness."""

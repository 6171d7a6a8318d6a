"""What is found out of finished volumes: how two differ, whether an output is right, how smooth one is."""

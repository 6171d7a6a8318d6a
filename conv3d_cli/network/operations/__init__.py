"""The operations of networks: a file for each family, and their table in `catalogue.py`."""

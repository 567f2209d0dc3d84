"""The architecture tables, one file per family."""

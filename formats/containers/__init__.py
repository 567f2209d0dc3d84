"""One module a container, `NAME_file.py`, each ending with its `FORMAT`; beside them what a few of them share."""

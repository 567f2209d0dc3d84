"""GGUF: the file, its metadata's values, the numbers of its types."""

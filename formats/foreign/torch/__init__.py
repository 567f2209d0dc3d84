"""PyTorch's files and the folders made of them: pickles, read as data, and `params.json`."""

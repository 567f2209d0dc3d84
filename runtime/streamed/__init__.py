"""Models that are larger than memory: weights are left in the file and read a part at a time."""

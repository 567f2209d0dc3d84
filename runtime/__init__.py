"""The torch side: run a checkpoint, measure it, generate, train.  Nothing outside this room imports torch."""

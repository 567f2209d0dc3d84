"""What JSON and MessagePack have in common: trees with arrays in them, as text and as bytes."""

"""Tables: rows and keys that read in both directions, the operations between tensors, what a decoder is made of."""

"""What a decoder is made of, read from a checkpoint in GGUF's dialect: no torch, no weights, only facts.

`describe(checkpoint)` gives a `Decoder`; the runtime assembles it, and anyone may print it.  Three sources are asked,
in this order: the file's keys, the tensors it holds (a bias, a gate or a q/k norm exists when its tensor does), and the
`decoder` pieces of the architecture's table for what neither says.  The pieces are the keys of `Pieces`.

`facts` holds what is found, `describe` the whole, `layers` one layer, `attention`, `rope` and `mlp` its parts.
"""

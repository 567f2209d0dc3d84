"""Of what a block is made: attention, MLP, norms, positions, convolution; recurrent layers."""

"""What goes through the layers beside one vector a token: further streams, vectors for each layer."""

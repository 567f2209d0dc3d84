"""What a text makes of a model's weights: importance matrices, and rounding that knows what its error costs."""

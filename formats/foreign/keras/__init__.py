"""Keras and TensorFlow.js: weights, layers and the graph between them."""

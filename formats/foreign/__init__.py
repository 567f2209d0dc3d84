"""Containers of other programs: PyTorch, numpy, Keras, ONNX, llama2.c, read only; TensorFlow.js."""

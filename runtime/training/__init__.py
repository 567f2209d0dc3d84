"""Training: data, a fresh or loaded model, the loop, durable checkpoints, exports.

`train(config)` reads from top to bottom in `loop.py`; each other file is one concern.
"""

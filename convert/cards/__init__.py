"""What a model says of itself: its card (README.md) and how it wants to be sampled <-> GGUF's general keys."""

from llmconv.convert.cards.about import files_of, keys_of
from llmconv.convert.cards.edited import agreeing

__all__ = ["agreeing", "files_of", "keys_of"]

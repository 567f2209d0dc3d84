"""torch: the model, loading, perplexity, comparison, generation, training."""

"""Commands that run a model: what they ask for stands in `measuring`."""

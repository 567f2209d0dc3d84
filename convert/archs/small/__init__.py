"""Small models that began outside Hugging Face."""

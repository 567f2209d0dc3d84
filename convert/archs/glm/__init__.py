"""GLM: rotary positions over half of each head, gate and up in one matrix; with experts since 4.5."""

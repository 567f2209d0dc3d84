"""Proofs: whether two ways of storing say the same weights (`by_codes`, `by_words`), and a written file what it should
(`written`)."""

"""Importance matrices being made: sums over tokens, their two file forms, what they say."""

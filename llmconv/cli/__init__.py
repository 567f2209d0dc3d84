"""The llmconv command."""

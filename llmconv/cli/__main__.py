"""`python -m llmconv.cli`, for torchrun."""

from llmconv.cli import main

main()

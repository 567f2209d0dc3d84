"""Coverage-guided fuzzing of the gguf reader: python tests/fuzz/run.py gguf --seconds 60."""

from targets import instrumented

if __name__ == "__main__":
    instrumented("gguf")

"""Coverage-guided fuzzing of the safetensors reader: python tests/fuzz/run.py safetensors --seconds 60."""

from targets import instrumented

if __name__ == "__main__":
    instrumented("safetensors")

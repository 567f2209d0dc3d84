"""Coverage-guided fuzzing of the json reader: python tests/fuzz/run.py json --seconds 60."""

from targets import instrumented

if __name__ == "__main__":
    instrumented("json")

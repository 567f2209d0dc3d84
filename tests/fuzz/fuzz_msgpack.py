"""Coverage-guided fuzzing of the MessagePack reader: python tests/fuzz/run.py msgpack --seconds 60."""

from targets import instrumented

if __name__ == "__main__":
    instrumented("msgpack")

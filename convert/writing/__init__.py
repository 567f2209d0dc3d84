"""Writing: what is changed on the way out (types, quantization, adapters), planned and streamed."""

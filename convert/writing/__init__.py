"""Writing: what is changed on the way out besides quantizing: float types, adapters, untied heads, keys left out."""

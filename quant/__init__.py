"""Block types (byte layout, encode, decode), the mixing recipes and the importance matrix.

Importing this package registers every type.  Look one up with `by_name` or `by_ggml_id`.
"""

from llmconv.quant import (
    iq as iq,  # importing a family registers its types
    iq4 as iq4,
    k as k,
    low as low,
    microscaling as microscaling,
    plain as plain,
    q32 as q32,
    ternary as ternary,
)
from llmconv.quant.block import BlockType, by_ggml_id, by_name, names, types

__all__ = ["BlockType", "by_ggml_id", "by_name", "names", "types"]

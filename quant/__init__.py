"""Block types (byte layout, encode, decode), the mixing recipes and the importance matrix.

Importing this package registers every type.  Look one up with `by_name` or `by_ggml_id`.
"""

from llmconv.quant import plain as plain  # importing a family registers its types
from llmconv.quant.block import BlockType, by_ggml_id, by_name, names, types
from llmconv.quant.blocks import (
    iq as iq,
    iq4 as iq4,
    k as k,
    low as low,
    microscaling as microscaling,
    q32 as q32,
    ternary as ternary,
)

__all__ = ["BlockType", "by_ggml_id", "by_name", "names", "types"]

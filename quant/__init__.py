"""Block types (byte layout, encode, decode), the mixing recipes and the importance matrix.

Importing this package registers every type.  Look one up with `by_name` or `by_ggml_id`.
"""

from llmconv.quant import iq as iq  # importing a family registers its types
from llmconv.quant import iq4 as iq4
from llmconv.quant import k as k
from llmconv.quant import low as low
from llmconv.quant import microscaling as microscaling
from llmconv.quant import plain as plain
from llmconv.quant import q32 as q32
from llmconv.quant import ternary as ternary
from llmconv.quant.block import BlockType, by_ggml_id, by_name, names, types

__all__ = ["BlockType", "by_ggml_id", "by_name", "names", "types"]

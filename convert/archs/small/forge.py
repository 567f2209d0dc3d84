"""forge: the character transformer of SrihariSr/Forge (its CharTransformer, in pure Python).

One block: attention of one head over all positions (no mask), scaled by the square root of the width, added to its
input; then two linear layers with ReLU between, added again; then the head.  No norms, no output projection.  Its first
version had no positions, the next a learned table.
"""

from __future__ import annotations

from llmconv.convert.archs.small.gpt import APART, ENDS, HEAD, KEYS, MLP
from llmconv.convert.tables.architecture import Architecture, HfName

FORGE = Architecture(
    "forge",
    (HfName("ForgeModel", "forge"),),
    keys=KEYS,
    rows=(*ENDS, *HEAD, *APART, *MLP[2:]),
    prefixes=("model.", ""),
    constants={"attention.causal": False},
    decoder={"positions": "none", "causal": False, "activation": "relu", "no_end": True, "tokenizer": "characters"},
)

ARCHITECTURES = (FORGE,)

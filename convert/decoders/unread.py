"""The keys of a GGUF that nothing here computes with and no tensor says either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.tables.keys import DIMS, LABELS, SCALED_BY
from llmconv.errors import cut, more

__all__ = ["unread"]

_KNOWN = {key for _, key, _ in DIMS if key != "attention.shared_kv_layers"} | {
    *("tensor_data_layout", "rope.scaling.finetuned", "decoder_start_token_id", "pooling_type", LABELS),
    *("n_deepstack_layers", "token_shift_count", "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
}
"""What tensors say too, what is of vectors of texts or of pictures, the epsilon of a kind of norm that is not there."""


def unread(decoder: Decoder, metadata: Mapping[str, Any]) -> list[str]:
    """A note about the keys of the decoder's architecture that it was not described by."""
    start = f"{decoder.arch}."
    sparse = any(".ffn_gate_inp." in name for name in decoder.shapes)
    names = [key for key in metadata if key.startswith(start) and not _known(key.removeprefix(start), decoder, sparse)]
    if not names or decoder.recurrent is not None:
        return []
    return [f"no effect here has {cut(names[0])}{more(names)}; if it changes what the model computes, results differ"]


def _known(name: str, decoder: Decoder, sparse: bool) -> bool:
    of_nobody = name.startswith("expert_") and not sparse
    return name in decoder.asked or name in _KNOWN or name.startswith(f"{SCALED_BY}.") or of_nobody

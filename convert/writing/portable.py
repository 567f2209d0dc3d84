"""A GGUF for publishing: without a key of ours, and a note of what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmconv.convert.tables import own_keys
from llmconv.convert.vocab import from_gguf
from llmconv.convert.vocab.model import HF_JSON
from llmconv.errors import Unsupported, listed
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["portable"]

_TOKENIZER = own_keys.OWN + "tokenizer."
_FILES = (own_keys.FILE, own_keys.CUT_FILE)
# Beginnings of keys -> what does not come back without them.
_LOST = {
    (own_keys.CONFIG, own_keys.GENERATION_CONFIG): "config.json as it was (one is made of the GGUF's keys)",
    (own_keys.JSON,): "the JSON document around the weights",
    (own_keys.TENSOR,): "tensors that GGUF has no name for",
    (own_keys.DTYPES, own_keys.EXACT): "the types and last bits that weights had",
    (own_keys.FORMS, own_keys.PREFIX, own_keys.NAMES): "the names that tensors had",
    (own_keys.WEIGHTS_METADATA, own_keys.SAFETENSORS_METADATA): "the metadata of the weights' file",
    (own_keys.PROVENANCE,): "its certificate",
}


def portable(checkpoint: Checkpoint) -> Checkpoint:
    """A model in GGUF's dialect without keys of ours, and a note that says what can't come back.

    `Unsupported` where only a key of ours says what the file is: tensors under their own names.
    """
    own = [key for key in checkpoint.metadata if key.startswith(own_keys.OWN)]
    if not own:
        return checkpoint
    if own_keys.is_plain(checkpoint.metadata):
        raise Unsupported(
            f"{checkpoint.where}: its tensors bear names of their own, which only a key of ours says; "
            "leave --portable out"
        )
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in own}
    if own_keys.WHOLE_JSON in own and (vocab := from_gguf(checkpoint.metadata)) is not None and vocab.json is not None:
        metadata[HF_JSON] = vocab.json  # without which nobody could split a text
    note = f"portable, so what can't come back from the GGUF: {'; '.join(_lost(own))}"
    return checkpoint.but(note, metadata=metadata)


def _lost(own: Sequence[str]) -> Iterator[str]:
    known = [*_LOST, _FILES, (_TOKENIZER, own_keys.WHOLE_JSON)]
    files = [key.removeprefix(own_keys.FILE).removeprefix(own_keys.CUT_FILE) for key in own if key.startswith(_FILES)]
    if files:
        yield f"{listed(files, 4)} byte for byte"
    yield from (said for keys, said in _LOST.items() if any(key.startswith(keys) for key in own))
    switches = [key.removeprefix(_TOKENIZER) for key in own if key.startswith(_TOKENIZER)]
    if switches:
        yield f"how the tokenizer treats {listed(switches, 4)}, so that a text's first token may be another"
    if rest := [key for key in own if not any(key.startswith(keys) for keys in known)]:
        yield listed(rest, 4)

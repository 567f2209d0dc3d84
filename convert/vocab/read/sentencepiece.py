"""sentencepiece's models (tokenizer.model and its other names) -> `Vocab`."""

from __future__ import annotations

import numpy as np

from llmconv.convert.vocab import proto
from llmconv.convert.vocab.model import CHARSMAP, SPACE, SPM, UNIGRAM, TokenType, Vocab
from llmconv.convert.vocab.read.folder import Folder
from llmconv.convert.vocab.read.steps import space_prefix
from llmconv.convert.vocab.read.tokens import add
from llmconv.errors import cut

__all__ = ["read"]


def read(folder: Folder, name: str) -> Vocab:
    """A vocabulary from a sentencepiece model, with the folder's added tokens put over its pieces.

    Added tokens get the score -1000, as the reference converter gives them.
    """
    model = proto.parse(folder.files[name])
    texts, scores, types = (list(column) for column in zip(*model.pieces, strict=True))
    for id, (text, type) in enumerate(zip(texts, types, strict=True)):
        if type == TokenType.USER_DEFINED and SPACE in text:
            # Such a symbol is matched in the text itself, before a space becomes "▁"; and where a space is put before
            # what follows a matched token, matching it would change the rest, but merging to it doesn't.
            texts[id] = text if model.add_dummy_prefix else text.replace(SPACE, " ")
            types[id] = TokenType.NORMAL if model.add_dummy_prefix else type
    added = folder.added(tokenizer_json=False)
    for id, token in folder.added().items():
        # tokenizer.json repeats <unk>, <s> and </s>: what the model says of them is enough.
        if id >= len(texts) or texts[id] != token.content:
            added.setdefault(id, token)
    tokens, kinds = add(texts, np.array(types, np.int32), added.values(), folder.size(len(texts)))
    column = np.full(len(tokens), -10000.0, np.float32)
    column[: len(scores)] = scores
    column[list(added)] = -1000.0
    vocab = Vocab(UNIGRAM if model.model_type == proto.UNIGRAM_MODEL else SPM, tokens, kinds, column, pre="default")
    for role, id in (("bos", model.bos_id), ("eos", model.eos_id), ("unk", model.unk_id), ("pad", model.pad_id)):
        if 0 <= id < len(tokens):
            vocab.special[role] = id
    if model.add_dummy_prefix:
        _prefix_once(vocab, folder, model)
    if vocab.model == UNIGRAM:
        vocab.flags["space_prefix"] = model.add_dummy_prefix
    elif not model.add_dummy_prefix:
        vocab.flags["space_prefix"] = False
    if vocab.model == UNIGRAM or model.remove_extra_whitespaces:
        vocab.flags["remove_extra_whitespaces"] = model.remove_extra_whitespaces
    if model.charsmap:
        vocab.extra[CHARSMAP] = np.frombuffer(model.charsmap, np.uint8)
        if vocab.model == SPM:
            vocab.notes.append(
                f"{name} normalises characters before splitting, which llama.cpp doesn't do for its kind: texts with "
                "unusual characters may get other ids there"
            )
    for name_of_it, differs in {
        "treat_whitespace_as_suffix": model.treat_whitespace_as_suffix,
        "escape_whitespaces": not model.escape_whitespaces,
    }.items():
        if differs:
            vocab.notes.append(
                f"{name} keeps spaces elsewhere than before words ({name_of_it}), which neither a GGUF can say nor its "
                "tokenizers do: texts get other ids there"
            )
    if folder.pre:
        vocab.pre = folder.pre
    return vocab


def _prefix_once(vocab: Vocab, folder: Folder, model: proto.Model) -> None:
    """Say where the dummy prefix goes: llama.cpp puts one behind each special or user-defined token too.

    A tokenizer.json beside the model says what it does; without, sentencepiece itself puts it before the text alone.
    """
    if "tokenizer.json" in folder.files:
        if space_prefix(folder.tokenizer).get("space_prefix_first"):
            vocab.flags["space_prefix_first"] = True
        return
    own = next((t for t, _, type in model.pieces if type == TokenType.USER_DEFINED and SPACE not in t), None)
    if own is not None:
        vocab.flags["space_prefix_text"] = True
        vocab.notes.append(
            f"sentencepiece puts no space behind its user-defined symbols ({cut(own)} and others like it); llama.cpp "
            "does, and gives texts with them other ids"
        )

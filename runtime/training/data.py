"""Training data: text, JSON lines or input/target pairs, tokenized once into mapped files, read back by step number.

A batch is a function of (seed, step) alone, so a resumed run needs no position but its step, and every process of a
distributed run can make the whole batch and take its share of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from llmconv.convert.vocab import Vocab, tokenizer as tokenizer_of
from llmconv.errors import BadFile, UsageError, at
from llmconv.formats.files import open_regular
from llmconv.formats.writing.outputs import Output
from llmconv.progress import Meter
from llmconv.runtime.training.inputs import data_files

__all__ = [
    "Batch",
    "Cut",
    "Pairs",
    "Stream",
    "documents",
    "highest",
    "load_data",
    "read_pairs",
]

PIECE = 1 << 20
"""Characters tokenized at a time."""


@dataclass(frozen=True)
class Batch:
    """inputs, targets: (B, T) int64, -100 where there is no target; mask: (B, T) bool, False at padding, or None."""

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor | None


def _pieces(path: Path) -> Iterator[str]:
    """A text file in pieces of about `PIECE` characters that end with a line, or at a space where lines are long."""
    with open_regular(path) as raw:
        rest = ""
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            chunk = raw.read(PIECE)
            try:
                rest += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise BadFile(
                    f"{at(path)}: is no UTF-8 text ({error.reason} at byte {raw.tell() - len(chunk) + error.start})"
                ) from None
            if not chunk:
                break
            cut = rest.rfind("\n") + 1 or (rest.rfind(" ") + 1 if len(rest) > 4 * PIECE else 0)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
        if rest:
            yield rest


def documents(path: Path) -> Iterator[Iterator[str]]:
    """The documents of a file or folder, each as pieces of text: a text file, or the "text" of a line of JSON lines."""
    for file in data_files(path):
        if file.suffix != ".jsonl":
            yield _pieces(file)
            continue
        with open_regular(file) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                found = _json(line, at(file, f"line {number}"))
                text = found.get("text") if isinstance(found, dict) else found
                if not isinstance(text, str):
                    raise BadFile(f"{at(file, f'line {number}')}: expected a text, or an object with one under 'text'")
                yield iter((text,))


def _json(raw: bytes, place: str) -> Any:
    """The value of JSON whose texts are Unicode: half of a surrogate pair, which no tokenizer takes, is refused."""
    try:
        return orjson.loads(raw.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise BadFile(f"{place}: is no JSON ({error})") from None


def read_pairs(path: Path) -> list[tuple[str, str]] | None:
    """The (input, target) texts of a JSON list of them; None when the file is something else."""
    if path.is_dir() or path.suffix != ".json":
        return None
    with open_regular(path) as file:
        raw = file.read()
    found = _json(raw, at(path))
    if not isinstance(found, list):
        raise BadFile(f"{at(path)}: expected a JSON list of objects with 'input' and 'target'")
    pairs = []
    for i, item in enumerate(found):
        if not (isinstance(item, dict) and isinstance(item.get("input"), str) and isinstance(item.get("target"), str)):
            raise BadFile(f"{at(path, f'entry {i}')}: expected an object with texts 'input' and 'target'")
        pairs.append((item["input"], item["target"]))
    if not pairs:
        raise BadFile(f"{at(path)}: is an empty list; there is nothing to train on")
    return pairs


def texts(path: Path) -> Iterator[str]:
    """All text of the data, for making a vocabulary."""
    pairs = read_pairs(path)
    if pairs is not None:
        # A pair's target is its input moved by a word, so the input and the target's end say everything once, in order.
        for left, right in pairs:
            yield left
            yield right
        return
    for document in documents(path):
        yield from document


def highest(data: Stream | Pairs) -> int:
    """The largest token id in the data."""
    if isinstance(data, Stream):
        return int(max(data.tokens[i : i + PIECE].max() for i in range(0, len(data.tokens), PIECE)))
    return max(max(*a, *b) for a, b in zip(data.inputs, data.targets, strict=True))


class Stream:
    """Token ids of a text in a mapped file; batches are windows at random places."""

    def __init__(self, tokens: NDArray[Any], context: int, seed: int):
        self.tokens, self.context, self.seed = tokens, context, seed

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, step: int, size: int) -> Batch:
        """`size` windows of step `step`: the next token of each position is its target."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        starts = rng.integers(0, len(self.tokens) - self.context, size)
        return self._windows(starts)

    @property
    def n_sequences(self) -> int:
        """How many windows that follow each other there are."""
        return len(range(0, len(self.tokens) - self.context, self.context))

    def sequences(self, first: int, stop: int) -> Batch:
        """Windows `first` to `stop` of those that follow each other."""
        return self._windows(np.arange(first, stop) * self.context)

    def _windows(self, starts: NDArray[Any]) -> Batch:
        windows = np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        both = torch.from_numpy(windows)
        return Batch(both[:, :-1], both[:, 1:], None)


class Pairs:
    """Input/target sequences; every epoch is its own order of all of them."""

    def __init__(self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], seed: int):
        self.inputs, self.targets, self.seed = inputs, targets, seed

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, step: int, size: int) -> Batch:
        """`size` pairs of step `step`, going round and round."""
        first = step * size
        chosen: list[int] = []
        while len(chosen) < size:
            epoch, place = divmod(first + len(chosen), len(self))
            order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self))
            chosen += order[place : place + size - len(chosen)].tolist()
        return self._pick(chosen)

    @property
    def n_sequences(self) -> int:
        return len(self)

    def sequences(self, first: int, stop: int) -> Batch:
        """Pairs `first` to `stop`, in order."""
        return self._pick(range(first, stop))

    def _pick(self, chosen: Sequence[int]) -> Batch:
        longest = max(len(self.inputs[i]) for i in chosen)
        inputs = torch.zeros(len(chosen), longest, dtype=torch.int64)
        targets = torch.full((len(chosen), longest), -100, dtype=torch.int64)
        mask = torch.zeros(len(chosen), longest, dtype=torch.bool)
        for row, i in enumerate(chosen):
            n = len(self.inputs[i])
            inputs[row, :n] = torch.tensor(self.inputs[i])
            targets[row, :n] = torch.tensor(self.targets[i])
            mask[row, :n] = True
        return Batch(inputs, targets, None if bool(mask.all()) else mask)


@dataclass(frozen=True)
class Cut:
    """How data become sequences: tokens in one, the share kept for validation (-1: the usual), the order's seed."""

    context: int
    val_fraction: float
    seed: int


def load_data(
    path: Path,
    vocab: Vocab,
    folder: Path,
    cut: Cut,
    sha256: str,
    progress: Meter | None = None,
) -> tuple[Stream | Pairs, Stream | Pairs, list[str]]:
    """Training and validation data and remarks; for pairs without a validation share, the training pairs themselves
    are measured.

    A text is tokenized once into `folder` (tokens.bin: uint16 or uint32, little-endian) and mapped; the next run
    on the same data (by their hash `sha256`; "": whatever is there) and vocabulary finds it there.
    progress: told the bytes of text that are done, of `text_bytes(path)` or so.
    """
    pairs = read_pairs(path)
    if pairs is not None:
        return *_load_pairs(path, pairs, vocab, cut), []
    share = 0.1 if cut.val_fraction < 0 else cut.val_fraction
    dtype = np.dtype("<u2" if len(vocab) <= 1 << 16 else "<u4")
    if sha256:
        folder.mkdir(parents=True, exist_ok=True)
        _tokenize_once(path, vocab, folder, dtype, sha256, progress)
    size = (folder / "tokens.bin").stat().st_size // dtype.itemsize
    if size == 0:
        raise BadFile(f"{at(path)}: is empty; there is nothing to train on")
    tokens = np.memmap(folder / "tokens.bin", dtype, "r", shape=(size,))
    end = size - int(size * share) if share else size
    train, val = tokens[:end], tokens[end:] if share else tokens
    if len(train) <= cut.context:
        raise BadFile(
            f"{at(path)}: gives {len(train):,} tokens to train on, expected more than a context of {cut.context}; "
            "give more text or a smaller --context"
        )
    notes = []
    if len(val) <= cut.context:
        val = tokens[-(cut.context + 1) :]
        notes.append("too little text is kept to validate on: its last window serves, though it is trained on too")
    return Stream(train, cut.context, cut.seed), Stream(val, cut.context, cut.seed), notes


def _tokenize_once(
    path: Path, vocab: Vocab, folder: Path, dtype: np.dtype[Any], sha256: str, progress: Meter | None
) -> None:
    """`tokens.bin` of this text and vocabulary, unless it is what is there."""
    record, target = folder / "data.json", folder / "tokens.bin"
    words = hashlib.sha256("\0".join(vocab.tokens).encode("utf-8", "surrogatepass")).hexdigest()
    key = hashlib.sha256(json.dumps([sha256, vocab.model, vocab.pre, words, vocab.json]).encode()).hexdigest()
    if target.is_file() and _recorded(record) == key:
        return
    record.unlink(missing_ok=True)  # it must not speak of tokens that are being replaced
    _tokenize(path, vocab, target, dtype, progress)
    with Output(record, force=True) as out:
        out.file.write(json.dumps({"key": key, "dtype": dtype.str}).encode())


def _load_pairs(path: Path, pairs: list[tuple[str, str]], vocab: Vocab, cut: Cut) -> tuple[Pairs, Pairs]:
    seed, share = cut.seed, max(0.0, cut.val_fraction)
    tokenizer = tokenizer_of(vocab)
    inputs, targets = [], []
    for i, (left, right) in enumerate(pairs):
        a, b = tokenizer.encode(left), tokenizer.encode(right)
        if len(a) != len(b) or not a:
            raise BadFile(
                f"{at(path, f'entry {i}')}: has {len(a)} input and {len(b)} target tokens, expected as many, and some"
            )
        inputs.append(a)
        targets.append(b)
    order = np.random.Generator(np.random.Philox(key=[seed, 1 << 40])).permutation(len(pairs))
    n_val = int(len(pairs) * share)
    if n_val >= len(pairs):
        raise UsageError("nothing is left to train on; give a smaller --val-fraction")
    kept, held = sorted(order[n_val:].tolist()), sorted(order[:n_val].tolist())
    train = Pairs([inputs[i] for i in kept], [targets[i] for i in kept], seed)
    if not held:
        return train, train
    return train, Pairs([inputs[i] for i in held], [targets[i] for i in held], seed)


def _recorded(record: Path) -> str | None:
    try:
        with open_regular(record) as file:
            found = json.loads(file.read())
    except (BadFile, ValueError, RecursionError):
        return None
    return found.get("key") if isinstance(found, dict) else None


def _tokenize(path: Path, vocab: Vocab, target: Path, dtype: np.dtype[Any], progress: Meter | None) -> None:
    """Every document's ids, one end-of-text token between documents where the vocabulary has one."""
    tokenizer = tokenizer_of(vocab)
    with Output(target, force=True) as out:
        first = True
        for document in documents(path):
            if not first and vocab.eos is not None:
                out.file.write(np.array([vocab.eos], dtype).tobytes())
            first = False
            for piece in document:
                text = " ".join(piece.split()) if vocab.model == "words" else piece
                out.file.write(np.array(tokenizer.encode(text), dtype).tobytes())
                if progress:
                    progress(len(piece.encode("utf-8", "surrogatepass")))

"""What a run begins with: the model and its vocabulary, which is the one that the data are cut with."""

from __future__ import annotations

from pathlib import Path

from llmconv import formats
from llmconv.convert import archs, further, vocab as vocabulary
from llmconv.convert.tables.presets import PRESETS, preset
from llmconv.convert.translate import translate
from llmconv.convert.vocab import Vocab
from llmconv.errors import BadFile, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.quant import plain
from llmconv.runtime.training import data as data_files
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.revocab import with_vocab
from llmconv.runtime.training.vocabulary import KINDS, make_vocab

__all__ = ["context_of", "opened", "refuse_looking_ahead", "settle_vocab", "starting_point"]


def opened(config: TrainConfig) -> Checkpoint | None:
    """The checkpoint to train on from, in GGUF's dialect; None for a fresh model."""
    return translate(formats.open(config.from_checkpoint), "gguf") if config.from_checkpoint else None


def refuse_looking_ahead(config: TrainConfig, source: Checkpoint | None) -> None:
    """`UsageError` for a model that sees every token of its input, and a text whose next token it should tell: it would
    learn to read the answer off.  Pairs say themselves what it should answer."""
    arch = preset(config.preset).arch if source is None else source.metadata.get("general.architecture")
    table = archs.by_gguf(str(arch))
    causal = table is None or table.decoder.get("causal", True)
    if causal or data_files.read_pairs(Path(config.data)) is not None:
        return
    other = f"{config.preset.lower()}-causal"
    instead = f", or take --preset {other}" if other in PRESETS else ""
    raise UsageError(
        f"{at(config.data)}: a {arch} model sees the words it would be trained to tell; give DATA as a JSON list of "
        f'{{"input": …, "target": …}} pairs{instead}'
    )


def settle_vocab(config: TrainConfig, source: Checkpoint | None, kept: Path) -> None:
    """Make or take the run's vocabulary, once, and keep it in the file `kept`: a resumed run and the other processes
    must have the very same one."""
    kind, own = config.tokenizer, None if source is None else vocabulary.of(source)
    if kind == "auto" and source is not None:
        if own is None:
            raise BadFile(f"{at(config.from_checkpoint)}: has no tokenizer; name one with --tokenizer")
        made = own
    else:
        made = _made(config, source, kind)
    if not len(made):
        raise BadFile(f"{at(config.data)}: is empty; there is nothing to train on")
    keys = {"general.architecture": "vocab"} | vocabulary.to_gguf(made)
    formats.by_name("gguf").save(Checkpoint(metadata=keys), kept, force=True)


def _made(config: TrainConfig, source: Checkpoint | None, kind: str) -> Vocab:
    if source is None:
        base = preset(config.preset)
        size = config.vocab_size or int(base.keys["vocab_size"])
        if kind == "auto":
            table = archs.by_gguf(base.arch)
            own = base.tokenizer or (table.decoder.get("tokenizer") if table else None)
            kind = own or ("word" if "simple" in base.name else "char" if size <= 256 else "bpe")
    else:
        size = source.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in source.tensors else 0
    return make_vocab(kind, size, data_files.texts(Path(config.data)) if kind in KINDS else ())


def starting_point(config: TrainConfig, source: Checkpoint | None, kept: Path) -> tuple[Checkpoint, Vocab, list[str]]:
    """The model that the run starts from, in GGUF's dialect with plain weights, its vocabulary, and remarks."""
    vocab = vocabulary.load(kept)
    if source is None:
        return fresh_checkpoint(config, vocab), vocab, []
    decoded = {n: t if t.type.is_plain() else t.astype(plain.F32) for n, t in source.tensors.items()}
    start = source.but(tensors=decoded)
    remarks = [_UNTRAINED] if further.count(source) else []
    if config.tokenizer == "auto":
        return start, vocab, remarks
    start, notes = with_vocab(start, vocab)
    return start, vocab, [*remarks, *notes]


_UNTRAINED = "the model's layers for further tokens are not trained, and left out of what the run writes"


def context_of(config: TrainConfig, start: Checkpoint) -> int:
    """Tokens in a training sequence; `UsageError` for more than the model takes."""
    arch = start.metadata["general.architecture"]
    limit = int(start.metadata.get(f"{arch}.context_length", 0))
    context = config.context or min(limit or 256, 1024)
    if limit and context > limit:
        raise UsageError(f"a context of {context} is more than the model's {limit}; give a smaller --context")
    return context

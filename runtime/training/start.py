"""What a run begins with: its folder, the checkpoint to go on from, the model and its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

from llmconv import formats
from llmconv.convert import archs
from llmconv.convert import vocab as vocabulary
from llmconv.convert.tables.presets import preset
from llmconv.convert.translate import translate
from llmconv.convert.vocab import Vocab
from llmconv.errors import BadFile, OutputError, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import Output, output_errors
from llmconv.quant import plain
from llmconv.runtime.training import data as data_files
from llmconv.runtime.training import state
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.parallel import Team
from llmconv.runtime.training.vocabulary import make_vocab

__all__ = ["context_of", "prepare", "starting_point"]


def prepare(folder: Path, config: TrainConfig, resume: bool, team: Team) -> Path | None:
    """The run's folder with its `config.json`; the checkpoint to go on from, or None."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{at(folder)}: is a file, expected a folder; choose another (-o)")
    record = folder / "config.json"
    newest = state.latest(folder)
    if resume:
        if newest is None:
            raise BadFile(f"{at(folder)}: holds no checkpoint to resume from; start without --resume")
        try:
            before = json.loads(record.read_bytes())
        except (OSError, ValueError):
            before = None
        mine = json.loads(json.dumps(config.identity()))
        if not isinstance(before, dict) or set(before) != set(mine):
            raise BadFile(
                f"{at(record)}: is not the record of a run's settings by this version; train on from the last "
                "checkpoint's model.gguf with --from, into another output folder"
            )
        names = sorted(k for k in mine if before[k] != mine[k])
        if names:
            raise UsageError(
                f"{at(folder)}: was trained with another configuration ({', '.join(names)}); give the same settings to "
                "resume, or another output folder"
            )
        return newest
    if newest is not None:
        raise OutputError(f"{at(folder)}: holds a run already; give --resume to go on, or another output folder (-o)")
    team.barrier()
    if team.rank == 0:
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with Output(record, force=True) as out:
            out.file.write(json.dumps(config.identity(), indent=2).encode() + b"\n")
    team.barrier()
    return None


def starting_point(config: TrainConfig, folder: Path, resume: bool, team: Team) -> tuple[Checkpoint, Vocab]:
    """The model that the run starts from, in GGUF's dialect with plain weights, and its vocabulary."""
    if config.from_checkpoint:
        start = translate(formats.open(Path(config.from_checkpoint)), "gguf")
        vocab = vocabulary.of(start)
        if config.tokenizer != "auto":
            vocab = vocabulary.load(Path(config.tokenizer))
        if vocab is None:
            raise BadFile(f"{at(config.from_checkpoint)}: has no tokenizer; name one with --tokenizer")
        decoded = {n: t if t.type.is_plain() else t.astype(plain.F32) for n, t in start.tensors.items()}
        return Checkpoint(decoded, start.metadata, source=start.source), vocab
    base = preset(config.preset)
    size = config.vocab_size or int(base.keys["vocab_size"])
    kind = config.tokenizer
    if kind == "auto":
        table = archs.by_gguf(base.arch)
        own = table.decoder.get("tokenizer") if table else None
        kind = own or ("word" if "simple" in base.name else "char" if size <= 256 else "bpe")
    # Made once: a resumed run, and the other processes, must have the very same one.
    kept = folder / "vocab.gguf"
    if team.rank == 0 and not (resume and kept.is_file()):
        source = Path(config.data)
        made = make_vocab(kind, size, data_files.texts(source))
        if not len(made):
            raise BadFile(f"{at(source)}: is empty; there is nothing to train on")
        formats.by_name("gguf").save(
            Checkpoint(metadata={"general.architecture": "vocab"} | made.to_gguf()), kept, force=True
        )
    team.barrier()
    vocab = vocabulary.load(kept)
    return fresh_checkpoint(config, vocab), vocab


def context_of(config: TrainConfig, start: Checkpoint) -> int:
    """Tokens in a training sequence; `UsageError` for more than the model takes."""
    arch = start.metadata["general.architecture"]
    limit = int(start.metadata.get(f"{arch}.context_length", 0))
    context = config.context or min(limit or 256, 1024)
    if limit and context > limit:
        raise UsageError(f"a context of {context} is more than the model's {limit}; give a smaller --context")
    return context

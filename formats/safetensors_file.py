"""safetensors: one file, several with an index, or a model folder as Hugging Face lays it out.

A folder with config.json opens in dialect "hf", its small side files in `Checkpoint.files`; `model.safetensors`
or a shard named inside such a folder opens the folder.  A lone file is "plain", unless it carries side files
in its own metadata (`llmconv.file.NAME`, binary ones in base64 under `llmconv.file64.NAME`): then it is "hf" too.
The layout of one file is in `safetensors_header`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmconv.errors import BadFile, Unsupported, UsageError, at, cut, more
from llmconv.formats import guests, limits, side_files
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.format import Format
from llmconv.formats.places import names as places
from llmconv.formats.places.ranges import expect
from llmconv.formats.safetensors_header import DTYPES as DTYPES, header_of, ordered, read_json, read_tensors
from llmconv.formats.sharing.team import current
from llmconv.formats.source import Source, read_back
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output, Outputs
from llmconv.formats.writing.stream import write_tensors
from llmconv.formats.writing.target import Proving
from llmconv.progress import Meter

NAME = "safetensors"
SUFFIXES = (".safetensors",)
"""A folder within a model folder: chat templates by name."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_OF_DIFFUSERS = "diffusion_pytorch_model"
FILE, FILE64 = "llmconv.file.", "llmconv.file64."

_SHARD = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.safetensors", re.DOTALL)


def sniff(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return (path / INDEX).is_file() or any(map(_is_weights, path.iterdir()))
    if path.name.endswith(".safetensors.index.json"):
        return head[:1] == b"{"
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= limits.SAFETENSORS_HEADER_BYTES


def _is_weights(path: Path) -> bool:
    """Whether a file's name is that of a lone file of weights."""
    return path.suffix.lower() == ".safetensors"


# Reading


def open(path: Path) -> Checkpoint:
    """A file, an index, or a model folder.  Lazy: tensors stay in the files, side files are paths."""
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(".safetensors.index.json"):
        return _open_index(path, path)
    folder = path.parent
    if (folder / "config.json").is_file():
        if path.name == WEIGHTS:
            return _open_folder(folder)
        if _SHARD.fullmatch(path.name) and (folder / INDEX).is_file():
            return _open_index(folder / INDEX, folder)
    checkpoint = open_alone(path)
    _unpack_files(checkpoint, path)
    return checkpoint


def open_alone(path: Path) -> Checkpoint:
    """One file as it is: whatever lies beside it, and whatever its metadata carries."""
    checkpoint = Checkpoint(format=NAME, source=path, dialect="plain", info={"shards": 1}, parts=[path])
    checkpoint.metadata = dict(read_tensors(checkpoint, path))
    return checkpoint


def _open_folder(folder: Path) -> Checkpoint:
    guests.check_links(folder)
    if (folder / WEIGHTS).is_file():
        checkpoint = _open_files(folder, [folder / WEIGHTS])
        checkpoint.notes += _overruled(folder / INDEX, checkpoint)
        return checkpoint
    if (folder / INDEX).is_file():
        return _open_index(folder / INDEX, folder)
    found = sorted(p for p in folder.iterdir() if _is_weights(p) and p.is_file())
    shards = [m for p in found if (m := _SHARD.fullmatch(p.name))]
    if shards and len(shards) == len(found) and len({(m["stem"], m["count"]) for m in shards}) == 1:
        # Their names say how many there are, which is what an index would be needed for.
        stem, count = shards[0]["stem"], shards[0]["count"]
        missing = next((n for n in range(1, int(count) + 1) if all(int(m["no"]) != n for m in shards)), None)
        if missing is not None:
            raise BadFile(f"{at(folder)}: its file {stem}-{missing:05d}-of-{count}.safetensors is missing; fetch it")
        return _open_files(folder, found)
    if len(found) != 1:
        raise BadFile(
            f"{at(folder)}: holds {len(found)} safetensors files and no {INDEX}, expected {WEIGHTS} or an index; "
            "name one file"
        )
    return _open_files(folder, found)


def _overruled(index: Path, checkpoint: Checkpoint) -> list[str]:
    """A note about an index beside a whole file, which readers take first, where it speaks of other weights."""
    if not index.is_file():
        return []
    try:
        listed = read_json(_read_small(index, limits.INDEX_BYTES), index)["weight_map"].items()
    except (BadFile, LookupError, AttributeError):
        return [f"{index.name} is damaged; {WEIGHTS} is read without it"]
    absent = [name for name, _ in listed if name not in checkpoint.tensors]
    files = sorted({str(file) for _, file in listed} - {WEIGHTS})
    what = f"tensor {cut(absent[0])}{more(absent)}" if absent else f"{cut(files[0])}{more(files)}" if files else ""
    return [f"{WEIGHTS} is read, though {index.name} names {what}, which is not in it"] if what else []


_LONGEST_NAME = 255  # bytes


def _open_index(index: Path, source: Path) -> Checkpoint:
    document = read_json(_read_small(index, limits.INDEX_BYTES), index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadFile(f"{at(index)}: has no 'weight_map' of tensor names to file names; fetch it again")
    if not weight_map:
        raise BadFile(f"{at(index)}: its 'weight_map' is empty, so it names no weights; fetch it again")
    names = list(dict.fromkeys(weight_map.values()))
    if len(names) > limits.MAX_SHARDS:
        raise BadFile(f"{at(index)}: names {len(names):,} files, expected at most {limits.MAX_SHARDS:,}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or Path(name).is_absolute():
            raise BadFile(f"{at(index)}: names the file {name!r}, expected one in its own folder; it is not followed")
        if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
            raise BadFile(f"{at(index)}: names the file {cut(name)}, longer than a file's name can be; fetch it again")
        if not (index.parent / name).exists():
            raise BadFile(f"{at(index)}: its file {name} is missing; fetch it")
    passed: dict[str, str] = {}
    files = [index.parent / name for name in sorted(names)]
    checkpoint = _open_files(source, files, index.parent, weight_map, passed)
    where = {t.name: t.extent.path.name for t in checkpoint.tensors.values() if t.extent is not None}
    for name, file in weight_map.items():
        if where.get(name) != file:
            there = where.get(name, passed.get(name))
            raise BadFile(
                f"{at(index)}: tensor {name!r} should be in {file} but is "
                f"{'in ' + there if there else 'nowhere'}; fetch the files again"
            )
    if extra := [name for name in where if name not in weight_map]:
        there = f"{where[extra[0]]} holds {cut(extra[0])}{more(extra)}"
        checkpoint.notes.append(f"{there}, which {index.name} does not list; read all the same")
    checkpoint.notes += side_files.passed_by(index.name, passed)
    stated = document.get("metadata")
    if isinstance(stated, dict):
        checkpoint.info["index_metadata"] = stated
    return checkpoint


_TELLING = frozenset({"flow_lm.bos_emb"})
"""Tensors of models whose folders have no config.json (see `convert.tables.implied`)."""


def _open_files(
    source: Path,
    files: list[Path],
    folder: Path | None = None,
    listed: Mapping[str, str] | None = None,
    passed: dict[str, str] | None = None,
) -> Checkpoint:
    """listed: the file of each tensor, where an index says it; `passed` is told what others hold under these names."""
    folder = folder or source
    checkpoint = Checkpoint(format=NAME, source=source, dialect="plain", info={"shards": len(files)}, parts=files)
    expect(files)
    for file in files:
        for key, value in read_tensors(checkpoint, file, listed or {}, passed).items():
            checkpoint.metadata.setdefault(key, value)
    checkpoint.files, notes = side_files.beside(folder)
    if source.is_dir():
        checkpoint.notes += guests.beside(folder, files, "*.safetensors")
        checkpoint.notes += side_files.others(folder, "*.safetensors", "pytorch_model*.bin")
    others = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
    if others and source.is_dir():
        checkpoint.notes.append(f"the safetensors files are taken, not {others[0]}{more(others)}")
    if "config.json" in checkpoint.files or not _TELLING.isdisjoint(checkpoint.tensors):
        checkpoint.dialect = "hf"
    checkpoint.notes += notes
    return checkpoint


def _read_small(path: Path, limit: int) -> bytes:
    size = regular_size(path)
    if size > limit:
        raise BadFile(f"{at(path)}: is {size:,} bytes, expected at most {limit:,}")
    return Source.of(path).read(0, size).tobytes()


def _unpack_files(checkpoint: Checkpoint, path: Path) -> None:
    """Side files out of a lone file's metadata."""
    for key in list(checkpoint.metadata):
        if key.startswith(FILE):
            checkpoint.files[_safe_name(key[len(FILE) :], path)] = checkpoint.metadata.pop(key).encode()
        elif key.startswith(FILE64):
            try:
                raw = base64.b64decode(checkpoint.metadata.pop(key), validate=True)
            except ValueError:
                raise BadFile(f"{at(path)}: metadata {key!r} is not base64; the file is damaged") from None
            checkpoint.files[_safe_name(key[len(FILE64) :], path)] = raw
    if "config.json" in checkpoint.files:
        checkpoint.dialect = "hf"


def _safe_name(name: str, path: Path) -> str:
    if not side_files.is_name(name):
        raise BadFile(f"{at(path)}: carries a side file named {name!r}, expected a plain file name; it is not followed")
    return name


# Writing


def save(
    checkpoint: Checkpoint,
    path: Path,
    *,
    force: bool = False,
    max_shard_size: int = 0,
    jobs: int | None = None,
    meter: Meter | None = None,
    proving: Proving | None = None,
) -> list[Path]:
    """Write a lone file when `path` ends in `.safetensors`, else a model folder.

    A lone file carries the side files in its metadata.  A folder gets `model.safetensors`, or, with
    `max_shard_size` (bytes; 0: never) exceeded, `model-00001-of-0000N.safetensors` and the index, written last.

    The tensors keep their order, unless one would then lie at an offset that is no multiple of its element's
    size: then the wider types go first, as the safetensors library does.  The header is padded with spaces to a
    multiple of 8.

    proving: of a model in one file.   Returns the files written.
    """
    path = Path(path)
    metadata = {}
    for key, value in checkpoint.metadata.items():
        if not isinstance(value, str):
            raise Unsupported(f"metadata {key!r} is no text, which safetensors can't hold; translate the model first")
        metadata[key] = value
    tensors = ordered(list(checkpoint.tensors.values()))
    lone = _is_weights(path)
    if lone:
        if max_shard_size and checkpoint.nbytes > max_shard_size:
            raise UsageError(f"{at(path)}: one file can't be split; give a folder for several shards")
        plan = _Plan([_Part(path, tensors, metadata | _packed_files(checkpoint, path))])
    else:
        plan = _folder(checkpoint, path, _groups(tensors, max_shard_size), metadata)
    stale = () if lone else _of_a_model(path)
    sizes, inputs = plan.sizes(), _inputs(checkpoint)
    with Outputs(sizes, force=force, inputs=inputs, folder=None if lone else path, stale=stale) as outputs:
        _put(outputs, plan.files)
        for part in plan.parts:
            if outputs.has(part.path, part.head):
                continue
            with outputs.open(part.path) as out:
                out.file.write(part.head)
                out.reserve(part.size)
                _write(out, part, proving, jobs, meter)
        _put(outputs, plan.index)
    return list(sizes)


def _write(out: Output, part: _Part, proving: Proving | None, jobs: int | None, meter: Meter | None) -> None:
    if proving is None:
        write_tensors(out, part.plan, jobs=jobs, meter=meter)
        return
    write_tensors(out, [(t, at) for t, at in part.plan if t.name not in proving.last], jobs=jobs, meter=meter)
    team = current()
    if team is not None:
        team.agree()  # all have written theirs
    there = open_alone(out.temporary)
    there.tensors = {name: read_back(tensor, out.file.fileno()) for name, tensor in there.tensors.items()}
    last = [(t, at) for t, at in part.plan if t.name in proving.last]
    write_tensors(out, last, jobs=jobs, meter=meter, told=proving.begin(there))
    proving.end()


@dataclass(frozen=True)
class _Plan:
    """What is written: the weights, before them the side files, after them the index."""

    parts: list[_Part]
    files: dict[Path, bytes] = field(default_factory=dict)
    index: dict[Path, bytes] = field(default_factory=dict)

    def sizes(self) -> dict[Path, int]:
        parts = {part.path: part.size for part in self.parts}
        before, after = ({path: len(raw) for path, raw in files.items()} for files in (self.files, self.index))
        return before | parts | after


def _folder(checkpoint: Checkpoint, path: Path, groups: Sequence[list[Tensor]], metadata: dict[str, str]) -> _Plan:
    """A model folder with a file for each group of tensors."""
    files = {path / _safe_name(name, path): checkpoint.file(name) or b"" for name in checkpoint.files}
    adapter = "adapter_config.json" in checkpoint.files and "config.json" not in checkpoint.files
    one = ADAPTER if adapter else f"{_stem(checkpoint)}.safetensors"
    names = [one] if len(groups) == 1 else [shard_name(i, len(groups), _stem(checkpoint)) for i in range(len(groups))]
    parts = [_Part(path / name, group, metadata) for name, group in zip(names, groups, strict=True)]
    listing = path / f"{_stem(checkpoint)}.safetensors.index.json"
    index = {listing: _index(checkpoint, parts)} if len(parts) > 1 else {}
    for clash in files.keys() & {*(part.path for part in parts), listing}:
        raise UsageError(f"side file {clash.name!r} is a name of the weights; leave it out or rename it")
    return _Plan(parts, files, index)


def _put(outputs: Outputs, files: Mapping[Path, bytes]) -> None:
    for path, raw in files.items():
        with outputs.open(path) as out:
            out.file.write(raw)


class _Part:
    """A file to be written: its header and where each tensor goes."""

    def __init__(self, path: Path, tensors: list[Tensor], metadata: dict[str, str]):
        self.path, self.tensors = path, tensors
        self.head, offsets = header_of(tensors, metadata)
        self.plan = [(t, len(self.head) + o) for t, o in zip(tensors, offsets, strict=True)]
        self.size = len(self.head) + sum(t.nbytes for t in tensors)


def _inputs(checkpoint: Checkpoint) -> list[Path]:
    """Files that the checkpoint may still be read from, all weights beside them among them."""
    return [*checkpoint.inputs(), *(_weights_in(checkpoint.source) if checkpoint.source is not None else ())]


def _weights_in(folder: Path) -> list[Path]:
    """Weights and indexes of the model in `folder`, as `save` would name them."""
    if not folder.is_dir():
        return []
    names = []
    for stem in ("model", _OF_DIFFUSERS):
        names += [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
        names += [p.name for p in folder.glob(f"{stem}-*.safetensors") if _SHARD.fullmatch(p.name)]
    return [folder / name for name in names if (folder / name).is_file()]


_OF_A_MODEL = (  # names that a reader of the folder would take for parts of the new model; nothing else is touched
    "model.safetensors.index.json",
    "config.json",
    "modules.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.j*",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def _of_a_model(folder: Path) -> list[Path]:
    """What an older model left in a folder that is written over: it would be read as part of the new one."""
    return [*_weights_in(folder), *(p for pattern in _OF_A_MODEL for p in folder.glob(pattern) if p.is_file())]


def _packed_files(checkpoint: Checkpoint, path: Path) -> dict[str, str]:
    """The side files as metadata of a lone file."""
    packed = {}
    for name in checkpoint.files:
        raw = checkpoint.file(name) or b""
        try:
            packed[FILE + _safe_name(name, path)] = raw.decode()
        except UnicodeDecodeError:
            packed[FILE64 + name] = base64.b64encode(raw).decode()
    return packed


def _index(checkpoint: Checkpoint, parts: Sequence[_Part]) -> bytes:
    weight_map = {tensor.name: part.path.name for part in parts for tensor in part.tensors}
    stated = {k: v for k, v in checkpoint.info.get("index_metadata", {}).items() if k != "total_size"}
    index = {"metadata": {"total_size": checkpoint.nbytes, **stated}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"


def _stem(checkpoint: Checkpoint) -> str:
    """How the names of a folder's weights begin: diffusers has its own."""
    try:
        config = json.loads(checkpoint.file("config.json") or b"{}")
    except (ValueError, RecursionError):
        config = {}
    return _OF_DIFFUSERS if isinstance(config, dict) and "_diffusers_version" in config else "model"


def shard_name(no: int, count: int, stem: str = "model") -> str:
    return f"{stem}-{no + 1:05d}-of-{count:05d}.safetensors"


def _groups(tensors: Sequence[Tensor], max_size: int) -> list[list[Tensor]]:
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and max_size and size + tensor.nbytes > max_size:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def header(checkpoint: Checkpoint) -> tuple[bytes, list[int], int]:
    """What `save` would write before the data of one weights file in a folder: the bytes, where each tensor of the
    checkpoint would begin, and the size of the file."""
    metadata = {key: value for key, value in checkpoint.metadata.items() if isinstance(value, str)}
    tensors = ordered(list(checkpoint.tensors.values()))
    head, offsets = header_of(tensors, metadata)
    begin = {tensor.name: len(head) + offset for tensor, offset in zip(tensors, offsets, strict=True)}
    return head, [begin[name] for name in checkpoint.tensors], len(head) + checkpoint.nbytes


def planned_size(checkpoint: Checkpoint) -> int:
    """Bytes of the one weights file that `save` would write into a folder, exactly; no tensor is read."""
    return header(checkpoint)[2]


def _refit(checkpoint: Checkpoint, offsets: list[int]) -> bytes | None:
    """A header of the checkpoint's metadata before tensors that lie at `offsets`; see `Format.refit`."""
    head, planned, _ = header(checkpoint)
    gap = min(offsets) - len(head)
    if gap < 0 or [offset + gap for offset in planned] != offsets:
        return None
    raw = head[8:] + b" " * gap
    return len(raw).to_bytes(8, "little") + raw


def _split(
    checkpoint: Checkpoint, target: Path | None, *, max_size: int, max_tensors: int, force: bool, meter: Meter | None
) -> list[Path]:
    """A folder with an index, by default beside the source, its name with `-split`."""
    if max_tensors:
        raise UsageError("safetensors models are split by size; give --max-size")
    if target is None:
        source = checkpoint.source or Path("model")
        target = places.beside(source) / f"{places.called(source).removesuffix('.safetensors')}-split"
    return save(checkpoint, target, force=force, max_shard_size=max_size, meter=meter)


FORMAT = Format(
    name=NAME,
    dialect="hf",
    sniff=sniff,
    open=open,
    write=save,
    suffixes=SUFFIXES,
    options=("max_shard_size",),
    folder=True,
    split=_split,
    refit=_refit,
    open_alone=lambda path: open(path) if path.name.endswith(".index.json") else open_alone(path),
)

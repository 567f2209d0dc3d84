"""Meta's and Mistral's own folders: `consolidated*` weights beside `params.json`, read as a Hugging Face folder.

Both keep a layer's weights under the names of llama's reference code, the rotary pairs of a head side by side, where
Hugging Face's models have them in halves.  Meta's shards are those of its parallel layers: every matrix is cut by
rows or by columns.  Sources: meta-llama/llama-models (`model.py`), fairscale's layers, mistralai/mistral-inference
(`args.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmconv.errors import BadFile, BadKey, MissingTensor, UnknownTensor, Unsupported, WrongShape, at, cut
from llmconv.formats import guests, limits, side_files
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import regular_size
from llmconv.formats.foreign.torch import params_json, torch_file
from llmconv.formats.format import Format
from llmconv.formats.moving import rows as moving
from llmconv.formats.safetensors_header import read_json, read_tensors
from llmconv.formats.tensor import Tensor

NAME = "consolidated"
PARAMS = "params.json"

_WEIGHTS = re.compile(r"consolidated(?:[.-]\d{2,5}(?:-of-\d{5})?)?\.(?:pth?|safetensors)")
_HUGGING_FACE = ("model*.safetensors", "pytorch_model*.bin")
_VERSIONED = re.compile(r"tokenizer\.model\.v\d+\w*")  # Mistral's sentencepiece models

ROWS, COLUMNS, EACH = "rows", "columns", "each"
"""How Meta's parallel layers cut a matrix; `EACH` has it whole."""
_OF_A_MODEL = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", None),
    "norm.weight": ("model.norm.weight", EACH),
    "output.weight": ("lm_head.weight", ROWS),
}
_OF_A_LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", ROWS),
    "attention.wk.weight": ("self_attn.k_proj.weight", ROWS),
    "attention.wv.weight": ("self_attn.v_proj.weight", ROWS),
    "attention.wo.weight": ("self_attn.o_proj.weight", COLUMNS),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", ROWS),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", COLUMNS),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", ROWS),
    "attention_norm.weight": ("input_layernorm.weight", EACH),
    "ffn_norm.weight": ("post_attention_layernorm.weight", EACH),
    "feed_forward.gate.weight": ("block_sparse_moe.gate.weight", EACH),
}
_LAYER = re.compile(r"layers\.(\d{1,5})\.(.+)")
_EXPERT = re.compile(r"feed_forward\.experts\.(\d{1,5})\.(w[123]\.weight)")
_COMPUTED = ("rope.freqs",)
_PICTURES = ("vision_encoder.", "vision_language_adapter.", "patch_merger.", "pre_mm_projector_norm.")


def sniff(path: Path, head: bytes) -> bool:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and not _WEIGHTS.fullmatch(path.name):
        return False
    return (folder / PARAMS).is_file() and bool(_weights(folder)) and not _others(folder)


def _weights(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("consolidated*") if _WEIGHTS.fullmatch(p.name) and p.is_file())
    return [p for p in found if p.suffix == ".safetensors"] or found


def _others(folder: Path) -> bool:
    """Whether the same model lies there in Hugging Face's own files, which say more."""
    return any(True for pattern in _HUGGING_FACE for _ in folder.glob(pattern))


def open(path: Path) -> Checkpoint:
    """The folder in dialect "hf": names, shapes and order of rows are Hugging Face's, config.json is made."""
    folder = path if path.is_dir() else path.parent
    files = _weights(folder)
    params = _object(folder / PARAMS)
    out = Checkpoint(format=NAME, source=folder, dialect="hf", info={"shards": len(files)}, parts=files)
    shards = _shards(files, folder)
    pictures = [name for name in shards[0] if name.startswith(_PICTURES)]
    if pictures:
        out.notes.append(f"left out, what sees pictures: {len(pictures)} tensors; the text model alone is read")
    sizes = _Sizes(params, shards, at(folder / PARAMS))
    for name in shards[0]:
        if name not in pictures and name not in _COMPUTED:
            out.add(_whole(name, [shard[name] for shard in shards], sizes, at(folder)))
    config, notes = params_json.config(params, sizes.found, at(folder / PARAMS))
    out.files, said = _side_files(folder)
    out.files["config.json"] = json.dumps(config, indent=2).encode() + b"\n"
    out.notes += [*notes, *said]
    return out


def _object(path: Path) -> dict[str, Any]:
    if regular_size(path) > limits.INDEX_BYTES:
        raise BadFile(f"{at(path)}: is larger than {limits.INDEX_BYTES:,} bytes, expected a few settings")
    return read_json(guests.whole(path), path)


def _shards(files: Sequence[Path], folder: Path) -> list[dict[str, Tensor]]:
    """The tensors of each of Meta's shards; of safetensors, whose files share a model out by tensors, all in one."""
    if files[0].suffix == ".safetensors":
        together = Checkpoint()
        for file in files:
            read_tensors(together, file)
        return [together.tensors]
    shards = []
    for i, file in enumerate(files):
        if re.search(r"\d", file.stem) and file.stem != f"consolidated.{i:02d}":
            raise BadFile(f"{at(folder)}: its file consolidated.{i:02d}{file.suffix} is missing; fetch it")
        one = Checkpoint()
        torch_file.read_file(one, file)
        shards.append(one.tensors)
    for i, shard in enumerate(shards):
        if shard.keys() != shards[0].keys():
            odd = min(shard.keys() ^ shards[0].keys())
            raise MissingTensor(at(files[0 if odd in shard else i]), odd, "the other shards have it; fetch them again")
    return shards


class _Sizes:
    """A model's sizes by params.json, and what only the weights say: `found`."""

    def __init__(self, params: Mapping[str, Any], shards: Sequence[Mapping[str, Tensor]], where: str):
        self.dim = _size(params, "dim", where)
        self.heads = _size(params, "n_heads", where)
        self.kv_heads = _size(params, "n_kv_heads", where, self.heads)
        self.head_dim = _size(params, "head_dim", where, self.dim // self.heads)
        self.layers = _size(params, "n_layers", where)
        if self.kv_heads > self.heads or self.heads % self.kv_heads or self.head_dim % 2:
            raise BadKey(where, "n_kv_heads", self.kv_heads, f"a divisor of the {self.heads} heads, of even width")
        self.found = {"rows": 0, "hidden": 0, "tied": 0}
        embedding = shards[0].get("tok_embeddings.weight")
        gate = next((t for n, t in shards[0].items() if n.endswith("w1.weight")), None)
        if embedding is None or gate is None or len(embedding.shape) != 2 or len(gate.shape) != 2:
            raise MissingTensor(
                where.removesuffix(PARAMS), "tok_embeddings.weight" if gate else "layers.0.feed_forward.w1.weight",
                "every model of Meta's and Mistral's has it",
            )  # fmt: skip
        self.embedding_cut = ROWS if embedding.shape[1] == self.dim else COLUMNS  # Llama 3's; Llama 1's and 2's
        self.found["rows"] = embedding.shape[0] * (len(shards) if self.embedding_cut == ROWS else 1)
        self.found["hidden"] = gate.shape[0] * len(shards)
        self.found["tied"] = int("output.weight" not in shards[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """A whole tensor's shape, by its Hugging Face name."""
        q, kv, ff = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.found["hidden"]
        kind = name.rsplit(".", 2)[-2]
        experts = self.found.get("experts", 0)
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(("embed_tokens", "lm_head"), (self.found["rows"], self.dim)),
            **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), (ff, self.dim)),
            **dict.fromkeys(("down_proj", "w2"), (self.dim, ff)),
            **dict.fromkeys(("k_proj", "v_proj"), (kv, self.dim)),
            "q_proj": (q, self.dim),
            "o_proj": (self.dim, q),
            "gate": (experts, self.dim),
        }
        return shapes.get(kind, (self.dim,))


def _size(params: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = params.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 24:
        raise BadKey(where, key, value, "a whole number from 1 up")
    return value


def _place(name: str, where: str) -> tuple[str, str | None]:
    """Hugging Face's name of a tensor, and how its shards are cut."""
    if name in _OF_A_MODEL:
        return _OF_A_MODEL[name]
    layer = _LAYER.fullmatch(name)
    if layer and (found := _OF_A_LAYER.get(layer[2])):
        return f"model.layers.{layer[1]}.{found[0]}", found[1]
    if layer and (expert := _EXPERT.fullmatch(layer[2])):
        _, how = _OF_A_LAYER[f"feed_forward.{expert[2]}"]
        return f"model.layers.{layer[1]}.block_sparse_moe.experts.{expert[1]}.{expert[2]}", how
    if "qscale" in name:
        raise Unsupported(f"{where}: tensor {cut(name)} is of weights stored with scales; take the model's bf16 files")
    raise UnknownTensor(where, [name], "is none of Llama's or Mistral's; use the model's Hugging Face folder")


def _whole(name: str, parts: Sequence[Tensor], sizes: _Sizes, where: str) -> Tensor:
    """A tensor of the model out of its shards, under Hugging Face's name and in its order of rows."""
    to, how = _place(name, where)
    how = sizes.embedding_cut if how is None else how
    if to.endswith("block_sparse_moe.gate.weight"):
        sizes.found["experts"] = parts[0].shape[0]
    shape = sizes.shape(to)
    if how == EACH or len(parts) == 1:
        made = parts[0]
        found = made.shape
    else:
        axis = 0 if how == ROWS else len(parts[0].shape) - 1
        found = tuple(sum(p.shape[i] for p in parts) if i == axis else n for i, n in enumerate(parts[0].shape))
        made = parts[0]
    if found != shape or any(p.shape != parts[0].shape or p.type is not parts[0].type for p in parts):
        raise WrongShape(where, name, found, shape, f"by {PARAMS}, its {len(parts)} shards together")
    if how != EACH and len(parts) > 1:
        made = moving.join(parts, shape) if how == ROWS else moving.beside(parts, shape)
    if to.endswith(("q_proj.weight", "k_proj.weight")):
        made = moving.swapped(made, shape[0] // sizes.head_dim, sizes.head_dim // 2, 2, 1)
    return made.renamed(to)


def _side_files(folder: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """Settings and the tokenizer; a sentencepiece model of Mistral's under the name that everybody knows."""
    found, notes = side_files.beside(folder)
    return {"tokenizer.model" if _VERSIONED.fullmatch(name) else name: path for name, path in found.items()}, notes


FORMAT = Format(name=NAME, dialect="hf", sniff=sniff, open=open)

"""How people name the parts of a GPT that they wrote themselves: from an array's path in a document to GGUF's name.

`weights["layer0.attn_wq"]`, `params.b0_wq`, `blocks[0].attn.query`, `transformer.h.0.attn.c_attn.weight` and
`blocks.0.sa.heads.1.key.weight` are the same few parts.  A path is read as words (camelCase and any punctuation part
them), words that say nothing are taken off its front, the layer's number is found, and the rest is looked up.

An array that does not stand as GGUF has it is marked behind its name: "^T" is a matrix [in][out], "^row" a vector
written as one row (or a position table with a batch dimension).  A document keeps one orientation, which the shapes of
its matrices show; a square matrix follows the others.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ROW", "TURNED", "Spelled", "holders", "spell"]

TURNED, ROW = "^T", "^row"

_ROOT = re.compile(
    r"(?:(?:weights?|model_state_dict|model_state|state_dict|state|model|params|parameters|module|orig_mod|transformer|"
    r"gpt|net|network|decoder|tensors|data|checkpoint|ckpt|snapshot|best|variables|embeddings?|embed)_)*"
)
_HOLDER = re.compile(r"_(?:data|values?|array|tensor)$")
"""What an object that holds an array and more of it calls the array."""
_LAYER = re.compile(r"(?:h|blocks?|layers?|l|b|blk)_?(\d+)_(.+)")
_LONGEST = 200
"""Letters of a path; no part's is longer."""
_HEAD = re.compile(r"(?:(?:\w+_)?)heads?_?(\d+)_(?:w_?)?(q|k|v|query|key|value)(?:_(weights?|w|bias|b))?")
_MASK = re.compile(r"(?:.*_)?(?:tril|(?:causal_)?mask|masked_bias)|(?:attn|sa|attention|self_attn)_bias")

_W, _B = r"(?:_(?:weights?|w|kernel|matrix))?", r"_(?:bias(?:es)?|b)"
_G, _S = r"_?(?:weights?|w|g|gamma|scale|gain)?", r"_?(?:bias|b|beta|shift)"
_ATT = r"(?:attn|attention|self_attn|self_attention|sa|mha|att|atten|csa|multi_head_attention|causal_self_attention)_"
_MLP = r"(?:mlp|ffn|ff|ffwd|feed_forward|feedforward|net)_"


def _projection(x: str, word: str) -> str:
    return rf"(?:{_ATT})?(?:w_?{x}|{x}|{word}|{x}_proj|{word}_proj|c_{x}|to_{x}|{x}_lin|w_{word})"


_FIRST = r"(?:ln|norm|layer_?norm|n|rms|rms_?norm)_?"

# Part of a block -> what it may be called, the weight's name and the bias's.
_BLOCK: tuple[tuple[str, str, str], ...] = (
    (
        "attn_norm",
        rf"{_FIRST}1|rms_att|attn_norm|attn_ln|ln_att|ln_attn|norm_attn|attention_norm|input_layernorm|pre_attn_norm",
        "norm",
    ),
    (
        "ffn_norm",
        rf"{_FIRST}2|rms_ffn|ffn_norm|mlp_norm|mlp_ln|ln_mlp|ln_ffn|norm_ffn|norm_mlp|post_attention_layernorm|"
        r"pre_mlp_norm",
        "norm",
    ),
    ("attn_qkv", rf"(?:{_ATT})?(?:c_attn|w_?qkv|qkv|qkv_proj|in_proj)", rf"(?:{_ATT})?(?:b_?qkv|qkv_?b)"),
    ("attn_q", _projection("q", "query"), rf"(?:{_ATT})?(?:b_?q|w_?q_?b)"),
    ("attn_k", _projection("k", "key"), rf"(?:{_ATT})?(?:b_?k|w_?k_?b)"),
    ("attn_v", _projection("v", "value"), rf"(?:{_ATT})?(?:b_?v|w_?v_?b)"),
    (
        "attn_output",
        rf"{_ATT}(?:c_proj|proj|out|output|projection|dense|fc_out|c_o)|"
        rf"(?:{_ATT})?(?:w_?o|o|o_proj|out_proj|output_proj|w_out)|proj",
        rf"(?:{_ATT})?(?:b_?o|w_?o_?b)",
    ),
    ("ffn_gate", rf"(?:{_MLP})?(?:gate|gate_proj|w_?gate|w_?g|fc_gate)", rf"(?:{_MLP})?(?:b_?g|b_gate)"),
    ("ffn_3", rf"(?:{_MLP})?(?:w_?3|fc_?3|linear_?3)", rf"(?:{_MLP})?b_?3"),
    (
        "ffn_down",
        rf"{_MLP}(?:c_proj|proj|out|output|2)|"
        rf"(?:{_MLP})?(?:fc_?2|w_?2|down|down_proj|w_down|lin_?2|linear_?2|net_2|dense_?2)",
        rf"(?:{_MLP})?(?:b_?2|fc_?2_?b|w_?2_?b|b_down)",
    ),
    (
        "ffn_up",
        rf"{_MLP}(?:in|0)|(?:{_MLP})?(?:c_fc|fc|fc_?1|w_?1|up|up_proj|w_up|lin_?1|linear_?1|net_0|dense_?1)",
        rf"(?:{_MLP})?(?:b_?1|fc_?1_?b|w_?1_?b|b_up)",
    ),
)
_EMBED = r"(?:emb|embed|embedding|embeddings|embedding_table|embd)"
_ENDS: tuple[tuple[str, str, str], ...] = (
    (
        "token_embd",
        rf"wte|(?:tok|token|word)_?{_EMBED}|tok_embeddings|embed_tokens|embeddings?|embed|emb|w_?e|e|"
        r"embedding_token_weights",
        "",
    ),
    (
        "position_embd",
        rf"wpe|(?:pos|position|positional)_?(?:{_EMBED}|enc|encoding)|w?pe|w_?pos|pos|embedding_position_weights",
        "",
    ),
    (
        "output_norm",
        r"(?:ln|norm|rms|layer_?norm)_?(?:f|out|final)|(?:final|out|output)_(?:norm|ln|layer_?norm|rms_?norm)|ln|norm",
        "norm",
    ),
    (
        "output",
        r"lm_head|head|output|w_?h|unembed|w_?out|w_?lm|w_vocab|out_proj|output_proj|vocab_proj|lm|w_?u",
        r"b_?h|b_?out|b_?lm|b_?u",
    ),
)


@functools.cache
def _patterns(table: tuple[tuple[str, str, str], ...]) -> list[tuple[str, re.Pattern[str]]]:
    """(part with "weight" or "bias", what it may be called), in order."""
    out = []
    for part, names, biases in table:
        if biases == "norm":
            out.append((f"{part}.bias", re.compile(f"(?:{names}){_S}")))
            out.append((f"{part}.weight", re.compile(f"(?:{names}){_G}")))
        else:
            if part not in ("token_embd", "position_embd"):
                out.append((f"{part}.bias", re.compile(f"(?:{names}){_B}" + (f"|{biases}" if biases else ""))))
            out.append((f"{part}.weight", re.compile(f"(?:{names}){_W}")))
    return out


@dataclass(frozen=True)
class Spelled:
    """names: GGUF's name (with "^T", "^row") -> path.   masks: paths of causal masks.   strays: paths of what lies
    among the parts and is none known here.   parts: the names without their marks.   others: the strays, and what lies
    elsewhere and is none known here."""

    names: Mapping[str, str]
    masks: frozenset[str] = frozenset()
    strays: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()
    others: tuple[str, ...] = ()

    def has(self, *parts: str) -> bool:
        return all(part in self.parts for part in parts)


def _words(path: str) -> str:
    """A path as words: `weights["tokEmb"]` is weights_tok_emb."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", path)
    return _HOLDER.sub("", "_".join(re.findall(r"[a-z0-9]+", parted.lower())))


def _below_root(words: str) -> str:
    """The words without those in front that say nothing."""
    found = _ROOT.match(words)
    return words[found.end() :] if found is not None and found.end() < len(words) else words


def _look_up(table: tuple[tuple[str, str, str], ...], words: str) -> str | None:
    return next((part for part, pattern in _patterns(table) if pattern.fullmatch(words)), None)


def _part(words: str) -> str | None:
    """GGUF's name of what the words say; "" for a mask; None for anything else."""
    below = _below_root(words)
    layer = _LAYER.fullmatch(below)
    if layer is None:
        return "" if _MASK.fullmatch(below) else _look_up(_ENDS, below) or _look_up(_ENDS, words)
    number, rest = int(layer[1]), layer[2]
    if _MASK.fullmatch(rest):
        return ""
    if (head := _HEAD.fullmatch(rest)) is not None:
        return f"blk.{number}.attn_{head[2][0]}.{int(head[1])}.{'bias' if (head[3] or 'w')[0] == 'b' else 'weight'}"
    found = _look_up(_BLOCK, rest)
    return None if found is None else f"blk.{number}.{found}"


def spell(shapes: Mapping[str, tuple[int, ...]]) -> Spelled:
    """The parts of a GPT among arrays of these paths and shapes."""
    return _spelled(tuple(shapes.items()))


@functools.lru_cache(maxsize=4)
def _spelled(items: tuple[tuple[str, tuple[int, ...]], ...]) -> Spelled:
    shapes, found, masks, unknown = dict(items), dict[str, str](), set[str](), list[str]()
    for path, shape in items:
        part = _part(_words(path)) if len(path) <= _LONGEST else None
        square = len(shape) > 1 and shape[-1] == shape[-2] and math.prod(shape[:-2]) == 1
        if part == "":
            (masks.add if square or not shape else unknown.append)(path)
        elif part is None or found.setdefault(part, path) != path:
            unknown.append(path)
    _gates(found)
    turned, head_turned = _turned(found, shapes)
    names = {}
    for part, path in found.items():
        on = head_turned if part == "output.weight" else turned and part.startswith("blk.")
        names[part + _mark(part, len(shapes[path]), on)] = path
    others = tuple(path for path in unknown if not _is_record(_words(path)))
    return Spelled(names, frozenset(masks), _strays(others, found, shapes), frozenset(found), others)


_RECORD = re.compile(
    r"(?:.*_)?(?:loss|losses|history|curve|metrics?|logs?|optim(?:izer)?|opt|adamw?|momentum|exp_avg|rng|random|seed|"
    r"epochs?|steps?|iters?|lrs?|betas|samples|training|config|cfg|hparams|metadata|meta|args|settings|"
    r"hyper_?parameters|vocab|vocabulary|u?chars|itos|stoi|tokens|tokenizer|merges|dataset|"
    r"pos(?:ition)?_(?:ids|idx|indices))(?:_.*)?"
)
"""What programs keep beside weights and compute nothing with."""
_MOMENT = re.compile(r"(.+)_(?:grad|m|v)")


def _is_record(words: str) -> bool:
    moment = _MOMENT.fullmatch(words)
    if moment is not None and _part(moment[1]):
        return True
    return _LAYER.fullmatch(_below_root(words)) is None and _RECORD.fullmatch(words) is not None


def _strays(others: Sequence[str], found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """What lies in a layer, in the object that holds every part, or beside a part and is as long as one."""
    steps = [_steps(path) for path in found.values()]
    parents = {path[:-1] for path in steps}
    holder = _shared(parents)
    lengths = {len({n for part in found if (n := part.split(".")[1]).isdigit()})}
    lengths.update(n for path in found.values() for n in shapes[path])

    def strays(path: str) -> bool:
        if _LAYER.fullmatch(_below_root(_words(path))):
            return True
        parts, shape = _steps(path), shapes[path]
        inside = bool(holder) and parts[: len(holder)] == holder
        return inside or (parts[:-1] in parents and (len(shape) > 1 or not lengths.isdisjoint(shape)))

    return tuple(path for path in others if strays(path))


def holders(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """The keys to each object around all of these paths, below the document itself; none below a list."""
    steps = _shared({_steps(path)[:-1] for path in paths})
    keys = list(itertools.takewhile(lambda step: not step.startswith("[") or step.startswith('["'), steps))
    plain = tuple(step[2:-2] if step.startswith("[") else step for step in keys)
    return [plain[:n] for n in range(1, len(plain) + 1)]


def _shared(paths: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """The steps with which all begin."""
    common = itertools.takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False))
    return tuple(steps[0] for steps in common)


_STEP = re.compile(r'\["[^"]*"\]|\[\d+\]|[^.\[]+')


def _steps(path: str) -> tuple[str, ...]:
    return tuple(_STEP.findall(path))


def _mark(part: str, dimensions: int, turned: bool) -> str:
    matrix = part.endswith(".weight") and "norm" not in part
    if part == "position_embd.weight":
        return ROW if dimensions == 3 else ""
    if not matrix:
        return ROW if dimensions == 2 else ""
    return TURNED if turned and dimensions == 2 else ""


def _gates(found: dict[str, str]) -> None:
    """Three matrices by number are Llama's: w2(silu(w1 x) * w3 x)."""
    for part in [p for p in found if ".ffn_3." in p]:
        gate, up = part.replace("ffn_3", "ffn_gate"), part.replace("ffn_3", "ffn_up")
        if gate not in found and up in found:
            found[gate], found[up] = found.pop(up), found.pop(part)


def _turned(found: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[bool, bool]:
    """Whether the layers' matrices, and the head's, are [in][out]."""
    embedding = shapes.get(found.get("token_embd.weight", ""), ())
    if len(embedding) != 2:
        return False, False
    width = embedding[1]

    def says(part: str) -> bool | None:
        shape = shapes.get(found.get(part, ""), ())
        if len(shape) != 2 or shape[0] == shape[1] or width not in shape:
            return None
        return shape[0] == width if not part.endswith("ffn_down.weight") else shape[1] == width

    blocks = next((s for p in found if re.search(r"ffn_(up|gate|down)\.weight|attn_(qkv|[qkv]\.\d+)\.weight", p)
                   and (s := says(p)) is not None), None)  # fmt: skip
    head = says("output.weight")
    if blocks is None:
        blocks = head if head is not None else not any(path.endswith(".weight") for path in found.values())
    return blocks, blocks if head is None and "output.weight" in found else bool(head)

"""What training a model takes on each device, from its shape alone: weights, gradients, optimizer, activations.

Activations are counted as torch's autograd keeps them for the backward pass of this program's decoder, piece by piece:
what goes into each matrix, each norm and each activation function, queries, keys, values and what attention gives.
Under 16-bit autocast the residual and the norms stay float32, and every matrix has a 16-bit copy.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmconv.convert import archs
from llmconv.convert.reports.shape import Shape
from llmconv.convert.tables.rows import at_layer
from llmconv.show import Shown

__all__ = ["PARTS", "TrainingMemory", "training_memory"]


PARTS = ("weights", "gradients", "optimizer", "gathered", "activations", "workspace")
"""What the memory consists of."""


_COARSE, _FINE = 64, 16  # tokens of a chunk, as `runtime.scans` has them


@dataclass(frozen=True)
class TrainingMemory(Shown):
    """Bytes per device to train: weights, gradients, optimizer states, activations, workspace, their total.

    devices: over how many the first three are sharded (FSDP2); batch, context: of one device's step.
    gathered: what is whole for a moment where they are: two blocks, one's gradients, and the ends with theirs.
    activations: what is kept from the forward pass for the backward one.   workspace: what is there for a moment: the
    gradients of the logits, or a block that is computed once more.
    """

    devices: int
    batch: int
    context: int
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)


def training_memory(
    shape: Shape,
    *,
    batch: int = 1,
    context: int = 0,
    devices: int = 1,
    optimizer_bytes: int = 8,
    activation_bytes: int = 2,
    checkpointing: bool = False,
    dropout: bool = False,
) -> TrainingMemory:
    """Memory to train a model of this shape with float32 weights, per device.

    optimizer_bytes: of what the optimizer keeps of a weight (8: AdamW's two float32 moments).  activation_bytes: of a
    number that the model computes (2: bfloat16 or float16 under autocast).  checkpointing: blocks are computed again
    instead of kept.
    """
    context = context or min(shape.dim("n_ctx") or 1024, 4096)
    share = -(-sum(math.prod(dims) for dims in shape.tensors.values()) // devices)
    count = _Count(shape, batch * context, context, activation_bytes, dropout)
    numbers = (re.match(r"blk\.(\d{1,9})\.", name) for name in shape.tensors)
    layers = {int(found[1]) for found in numbers if found}  # those that there are, however many a key claims
    blocks = [count.block(i) for i in sorted(layers) if i < shape.dim("n_layer")]
    logits = batch * context * shape.dim("n_vocab")
    workspace = 8 * logits  # the gradients of the logarithms and of the logits
    kept = count.ends() + 4 * logits  # the logarithms of the probabilities
    if checkpointing:
        kept += len(blocks) * 4 * count.tokens * count.dim
        inner = activation_bytes * batch * context * shape.dim("n_ff")  # the gradient of its widest numbers
        again = max(blocks, default=0) - 4 * count.tokens * count.dim  # its input is kept already
        workspace = max(workspace, again + inner)
    else:
        kept += sum(blocks)
    gathered = _gathered(shape) if devices > 1 else 0
    return TrainingMemory(
        devices, batch, context, 4 * share, 4 * share, optimizer_bytes * share, gathered, kept, workspace
    )


def _gathered(shape: Shape) -> int:
    """Bytes that `fully_shard`, over each block and then the rest, has whole at once, in float32: a block runs while
    the next is fetched, on the way back its gradients are there too, and the rest stays from its use to its gradients.
    """
    blocks, ends = defaultdict[str, int](int), 0
    for name, dims in shape.tensors.items():
        found = re.match(r"blk\.(\d{1,9})\.", name)
        if found:
            blocks[found[1]] += math.prod(dims)
        else:
            ends += math.prod(dims)
    return 4 * (3 * max(blocks.values(), default=0) + 2 * ends)


class _Count:
    """Bytes that autograd keeps of `tokens` tokens, in sequences of `context`, computed in numbers of `width` bytes."""

    def __init__(self, shape: Shape, tokens: int, context: int, width: int, dropout: bool):
        table = archs.by_gguf(shape.arch)
        self.shape, self.tokens, self.context, self.width, self.dropout = shape, tokens, context, width, dropout
        self.dims = table.dims_of(shape.metadata) if table else {}
        self.pieces: Mapping[str, Any] = table.decoder if table else {}
        self.dim = shape.dim("n_embd")
        stated = self.key("attention.layer_norm_rms_epsilon") is not None
        self.rms = self.pieces.get("norm", "rms" if stated else "layer") == "rms"

    def key(self, name: str) -> Any:
        return self.shape.metadata.get(f"{self.shape.arch}.{name}")

    def norm(self, numbers: int, rows: int = 1, apart: bool = False) -> int:
        """A norm keeps its input in float32, and each row's mean and spread; the formula of RMS norms on a CPU, and any
        with a weight for each head (`apart`), also the normed one."""
        return self.tokens * (numbers * (8 if self.rms or apart else 4) + rows * (4 if self.rms else 8))

    def weightless(self, there: Mapping[str, tuple[int, ...]], *names: str) -> int:
        """Bytes of those of these norms that the model has without a tensor."""
        bare = [name for name in self.pieces.get("weightless", ()) if name in names and f"{name}.weight" not in there]
        return len(bare) * self.norm(self.dim)

    def copies(self, names: Mapping[str, tuple[int, ...]]) -> int:
        """16-bit copies of the matrices."""
        matrices = (math.prod(dims) for name, dims in names.items() if name.endswith(".weight") and len(dims) > 1)
        return self.width * sum(matrices) if self.width < 4 else 0

    def ends(self) -> int:
        """Before the first block and after the last."""
        tensors = self.shape.tensors
        ends = ("token_embd_norm", "output_norm")
        total = sum(self.norm(self.dim) for name in ends if f"{name}.weight" in tensors)
        total += self.weightless(tensors, *ends)
        total += self.tokens * (8 + self.width * tensors.get("token_embd.weight", (0, self.dim))[1])
        total += 4 * self.tokens * self.dim if self.dropout else 0
        head = "token_embd.weight" if self.shape.tied else "output.weight"
        return total + self.copies({name: tensors[name] for name in (head,) if name in tensors})

    def block(self, i: int) -> int:
        """One layer."""
        prefix = f"blk.{i}."
        own = {n.removeprefix(prefix): d for n, d in self.shape.tensors.items() if n.startswith(prefix)}
        table = archs.by_gguf(self.shape.arch)
        here = at_layer(self.dims, i) if table else {}
        total = self.copies(own) + self.weightless(own, "attn_norm", *["ffn_norm"] * (not self.pieces.get("parallel")))
        for name, dims in own.items():
            if "norm" in name and name.endswith(".weight"):
                heads = {"attn_q_norm": here["n_head"], "attn_k_norm": here["n_head_kv"]}.get(name[:-7], 1)
                whole = heads == 1 or len(dims) > 1 or dims[0] > here["head_dim"]
                rows = 1 if len(dims) == 1 and whole else heads
                total += self.norm(math.prod(dims) if whole else heads * dims[0], rows, apart=len(dims) > 1)
        numbers = self.attention(own, here) + self.mlp(own, here)
        if self.dropout:  # what each of the two dropouts multiplied with
            numbers += 2 * self.dim
        return total + self.width * self.tokens * numbers + self.matrices(own, here) + self.routing(own, here)

    def attention(self, own: Mapping[str, tuple[int, ...]], here: Mapping[str, int]) -> int:
        """Numbers a token that attention keeps: what is projected, queries, keys, values, what it gives."""
        scanned = self.scan(own, here)
        if scanned and ("attn_k.weight" not in own or "ssm_conv1d_q.weight" in own):
            return scanned
        if not any(name.startswith("attn_") and "norm" not in name for name in own):
            return 0
        heads = here["n_head"]
        if "attn_kv_a_mqa.weight" in own:  # latent: what the projections of queries and sums are fed with
            nope = max(0, here["nope"] - here["n_rot"])
            fed = self.fed(own, "attn_q", "attn_q_a", "attn_kv_a_mqa") + (
                here["q_lora"] if "attn_q_b.weight" in own else 0
            )
            return fed + heads * (nope + here["kv_lora"] + here["v_mla"])
        fed = self.fed(own, "attn_q", "attn_k", "attn_v", "attn_qkv")
        # What attention gives is kept for what multiplies it, or by the kernel that made it.
        given = 0 if self.in_the_open(own) and "attn_output.weight" not in own else heads * here["head_dim_v"]
        if "attn_qkv.weight" in own and self.pieces.get("positions", "rope") == "rope" and heads == here["n_head_kv"]:
            given += 2 * heads * here["head_dim"]  # the values stay where they were projected, beside the unturned rest
        if self.key("attention.clamp_kqv"):
            given += heads * here["head_dim"] + here["n_head_kv"] * (here["head_dim"] + here["head_dim_v"])
        # Keys and values once for each head: a CPU's kernels know no groups.
        return scanned + fed + heads * (2 * here["head_dim"] + here["head_dim_v"]) + given

    def scan(self, own: Mapping[str, tuple[int, ...]], here: Mapping[str, int]) -> int:
        """Numbers a token that a scan or a convolution keeps, about: float32 whatever is computed in."""
        inner, state, wide = here["d_inner"], here["d_state"], 4 // self.width
        if "shortconv.conv.weight" in own:
            return 8 * self.dim
        if "ssm_conv1d.weight" not in own:
            return self.sums(own, here, wide)
        channels = own["ssm_conv1d.weight"][0]
        if "ssm_x.weight" in own:  # the state after every token
            return self.dim + 8 * inner + wide * 6 * inner * state
        chunk = 64 * here["dt_rank"]  # what each token of a chunk is to each
        shared = 6 * here["dt_rank"] * state  # keys or B and C, once for each head
        return self.dim + 4 * channels + wide * (5 * inner + 4 * chunk + shared)

    def sums(self, own: Mapping[str, tuple[int, ...]], here: Mapping[str, int], wide: int) -> int:
        """The same of linear attention (Kimi's delta rule, RWKV's, lightning): what each token of a chunk is to each,
        for every number of a key where each decays by itself, and a state for each chunk."""
        if "ssm_conv1d_q.weight" in own:
            inner, size = own["attn_output.weight"][1], own["ssm_norm.weight"][-1]
            return self.dim + wide * inner * (4 * _FINE + 27 + size // _FINE)
        if "time_mix_receptance.weight" in own:
            inner, size = own["time_mix_receptance.weight"][0], max(1, here["n_wkv"])
            seven = "time_mix_k_k.weight" in own
            times = 8 * _FINE + 39 + size // _FINE if seven else 2 * _FINE + 22 + 6 * size // _FINE
            return wide * (inner * times + (0 if seven else 5 * _FINE * inner // size))
        if "attn_gate.weight" in own and "attn_norm_2.weight" in own:
            inner, chunk, heads = own["attn_output.weight"][1], min(_COARSE, self.context), max(1, here["n_head"])
            return self.dim + wide * (2 * heads * chunk + inner * (12 + 2 * inner // heads // chunk))
        return 0

    def fed(self, own: Mapping[str, tuple[int, ...]], *names: str) -> int:
        """Numbers a token of what goes into these matrices: once, but autocast makes each its own 16-bit copy."""
        there = sum(f"{name}.weight" in own for name in names)
        return self.dim * (there if self.width < 4 else min(1, there))

    def in_the_open(self, own: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether no kernel computes attention as a whole (see `runtime.attention.attend`)."""
        return bool(
            self.key("attention.softmax_start")
            or self.pieces.get("softmax_start")
            or self.key("attn_logit_softcapping")
            or self.key("attention.max_alibi_bias")
            or self.pieces.get("positions") == "alibi"
            or "attn_sinks.weight" in own
        )

    def matrices(self, own: Mapping[str, tuple[int, ...]], here: Mapping[str, int]) -> int:
        """Bytes of attention's matrices, where it has to be computed in the open; of its sums otherwise."""
        if "attn_kv_a_mqa.weight" in own:
            return self.latent(here)
        if not self.in_the_open(own):
            return 4 * self.tokens * here["n_head"]
        start = self.key("attention.softmax_start") or self.pieces.get("softmax_start")
        each = 8 + self.width if start else 4 + (self.width if self.width < 4 else 0)
        each += self.width if self.key("attn_logit_softcapping") else 0
        return self.tokens * self.context * here["n_head"] * each

    def latent(self, here: Mapping[str, int]) -> int:
        """Bytes of attention over latents, whose values are not as long as its keys, which a CPU's kernels don't know:
        float32 queries, keys and values for each head, the matrix, and the projections once for each sequence."""
        heads, rank, rope = here["n_head"], here["kv_lora"], here["n_rot"]
        sequences = self.tokens // self.context
        projections = sequences * heads * rank * (max(0, here["nope"] - rope) + here["v_mla"])
        unturned = rope if self.width == 4 else 0  # stays beside the latent that the norm keeps
        inner = heads * (3 * rank + 2 * rope + self.context) + unturned
        return 4 * self.tokens * inner + self.width * projections

    def routing(self, own: Mapping[str, tuple[int, ...]], here: Mapping[str, int]) -> int:
        """Bytes of sending tokens to experts and of adding up what these give: float32 and long integers."""
        if "ffn_gate_inp.weight" not in own:
            return 0
        experts, used = own["ffn_gate_inp.weight"][0], here["n_expert_used"]
        return self.tokens * (4 * experts + used * (4 * self.dim + 32))

    def mlp(self, own: Mapping[str, tuple[int, ...]], here: Mapping[str, int]) -> int:
        """Numbers a token that the MLP keeps; with experts, of those that a token is sent to."""
        total = self.fed(own, "ffn_gate_inp", "ffn_up_shexp", "ffn_gate_shexp", "ffn_gate_inp_shexp")
        if "channel_mix_key.weight" in own:
            total += 5 * self.dim + 2 * own["channel_mix_key.weight"][0]
        for kind, times in (("", 1), ("_exps", here["n_expert_used"]), ("_shexp", 1)):
            down = own.get(f"ffn_down{kind}.weight")
            if down is None:
                continue
            inner = self.inner(own, kind) * down[-1]
            fed = (
                0 if kind == "_shexp" else self.fed(own, *(f"{n}{kind}" for n in ("ffn_up", "ffn_gate", "ffn_gate_up")))
            )
            if self.width == 4 and self.pieces.get("parallel") and "ffn_norm.weight" not in own:
                fed = 0  # it is what attention gets
            gate = {"_exps": "ffn_gate_inp.weight", "_shexp": "ffn_gate_inp_shexp.weight"}.get(kind)
            weighted = self.dim if gate in own else 0
            total += times * (inner + fed + weighted)
        return total

    def inner(self, own: Mapping[str, tuple[int, ...]], kind: str) -> int:
        """How often the numbers between an MLP's matrices are kept, on their way through the activation."""
        activation = self.pieces.get("activation")
        up = own.get(f"ffn_up{kind}.weight", (0, 0))
        gated = any(f"{name}{kind}.weight" in own for name in ("ffn_gate", "ffn_gate_up"))
        if gated or up[-2] == 2 * own[f"ffn_down{kind}.weight"][-1]:
            return 7 if activation == "swiglu_oai" else 4
        return 1 if activation == "relu" else 2

"""Small GGUF models made with the `gguf` package: random weights of a trained shape, any architecture's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray


def shapes(
    n_layer: int = 4,
    n_embd: int = 256,
    n_ff: int = 512,
    n_vocab: int = 96,
    n_kv: int = 128,
    n_expert: int = 0,
    tied: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a Llama; with experts, of a Mixtral."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, n_embd), "output_norm.weight": (n_embd,)}
    if not tied:
        found["output.weight"] = (n_vocab, n_embd)
    for i in range(n_layer):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (n_embd,),
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_kv, n_embd),
            "attn_v": (n_kv, n_embd),
            "attn_output": (n_embd, n_embd),
            "ffn_norm": (n_embd,),
        }
        stack = (n_expert,) if n_expert else ()
        end = "_exps" if n_expert else ""
        if n_expert:
            layer["ffn_gate_inp"] = (n_expert, n_embd)
        layer[f"ffn_gate{end}"] = layer[f"ffn_up{end}"] = (*stack, n_ff, n_embd)
        layer[f"ffn_down{end}"] = (*stack, n_embd, n_ff)
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Heavy-tailed, with rows of different sizes, as trained matrices are."""
    values = rng.standard_t(5, shape).astype(np.float32) * np.float32(0.02)
    return values * rng.lognormal(0, 0.5, (*shape[:-1], 1)).astype(np.float32) if len(shape) > 1 else values + 1


def stored(values: NDArray[np.float32], kind: str) -> tuple[NDArray[Any], Any]:
    if kind == "F16":
        return values.astype(np.float16), None
    if kind == "BF16":
        return values.astype(ml_dtypes.bfloat16).view(np.uint8), gguf.GGMLQuantizationType.BF16
    return values, None


def write(path: Path, kind: str = "F16", arch: str = "llama", seed: int = 0, changes: Any = None, **sizes: Any) -> Path:
    """A model at `path`; matrices are of type `kind`, vectors F32.  changes: called with each (name, values)."""
    rng = np.random.default_rng(seed)
    n_layer, n_embd = sizes.get("n_layer", 4), sizes.get("n_embd", 256)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("synthetic")
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[kind])
    writer.add_context_length(128)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(sizes.get("n_ff", 512))
    writer.add_head_count(n_embd // 64)
    writer.add_head_count_kv(sizes.get("n_kv", 128) // 64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if sizes.get("n_expert"):
        writer.add_expert_count(sizes["n_expert"])
        writer.add_expert_used_count(2)
    writer.add_quantization_version(2)
    writer.add_token_list([f"t{i}" for i in range(sizes.get("n_vocab", 96))])
    writer.add_array("some.numbers", [1, 2, 3])
    for name, shape in shapes(**sizes).items():
        values = weights(rng, shape)
        if changes is not None:
            values = changes(name, values)
        data, raw = stored(values, kind if len(shape) > 1 else "F32")
        writer.add_tensor(name, data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_importance(path: Path, seed: int = 1, **sizes: Any) -> Path:
    """An importance matrix (GGUF form) for every matrix of such a model but the embeddings and the head."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 12)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in shapes(**sizes).items():
        if len(shape) > 1 and "blk" in name and "gate_inp" not in name:
            matrices = shape[-3] if len(shape) > 2 else 1
            writer.add_tensor(f"{name}.in_sum2", rng.lognormal(0, 1, (matrices, shape[-1])).astype(np.float32))
            writer.add_tensor(f"{name}.counts", np.full((matrices, 1), 4096, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_exact(path: Path) -> Path:
    """A small Llama in F16 whose every byte is given here, by integers alone: what recorded hashes are of."""
    from llmconv.formats.checkpoint import Checkpoint
    from llmconv.formats.gguf import gguf_file
    from llmconv.formats.tensor import Tensor

    sizes = {"n_layer": 8, "n_vocab": 32, "n_ff": 288}
    arch = {"context_length": 64, "embedding_length": 256, "block_count": 8, "feed_forward_length": 288}
    arch |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    metadata: dict[str, Any] = {"general.architecture": "llama", "general.file_type": np.uint32(1)}
    metadata |= {f"llama.{key}": np.uint32(value) for key, value in arch.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = np.float32(2**-17)
    metadata["tokenizer.ggml.tokens"] = [f"t{i}" for i in range(32)]
    checkpoint = Checkpoint(metadata=metadata)
    for number, (name, shape) in enumerate(shapes(**sizes).items()):
        counter = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(number << 20)
        mixed = counter * np.uint32(2654435761)
        mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(2246822519)
        signed = (mixed >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - 1
        values = (signed * signed * signed / 8).reshape(shape)  # few large, many small
        checkpoint.add(Tensor.from_array(name, values.astype(np.float16 if len(shape) > 1 else np.float32)))
    gguf_file.save(checkpoint, path)
    return path


def broken(at: tuple[int, ...], value: float) -> Any:
    def change(name: str, values: Any) -> Any:
        if name == "blk.1.ffn_up.weight":
            values[at] = value
        return values

    return change


def sparse(path: Path, gigabytes: float) -> Path:
    """A valid F16 model of zeros that takes no space on the disk."""
    rows = int(gigabytes * 1e9 / 2 / 4096)
    writer = gguf.GGUFWriter(path, "nobodys")  # an architecture without a table: any tensors will do
    writer.add_block_count(1)
    shape = (rows // 4, 4096)
    for i in range(4):
        writer.add_tensor_info(f"blk.0.w{i}.weight", shape, np.dtype(np.float16), rows // 4 * 8192)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.seek(0, 2)
        start = -(-file.tell() // 32) * 32
        file.truncate(start + 4 * (rows // 4 * 8192))
    return path

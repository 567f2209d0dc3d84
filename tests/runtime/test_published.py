"""Folders as they are published, of families whose names transformers has changed: its logits, and ours."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import by_hand
import pytest
import tiny_models
from worded import by_hand_folder

import llmconv
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

LENGTH = 70


def _theirs(folder: Checkpoint, config: dict[str, Any], path: Path) -> Any:
    """The folder in transformers, by its own reading of the names."""
    safetensors_file.save(folder, path)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    (path / "config.json").write_text(json.dumps(config | tokens))
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    buffers = {name for name in said["missing_keys"] if name.endswith(("_decay", "slope_rate"))}
    assert not said["missing_keys"] - buffers and not said["unexpected_keys"], said
    return model.eval()


def _ling(path: Path, **more: Any) -> tuple[Any, Checkpoint]:
    config = by_hand.CONFIGS["ling3"] | {"num_hidden_layers": 4, "moe_shared_expert_intermediate_size": 32} | more
    folder = by_hand_folder(config, all_rows=True)
    return _theirs(folder, config | {"num_nextn_predict_layers": 0}, path), folder


def _lightning(path: Path) -> tuple[Any, Checkpoint]:
    config = by_hand.CONFIGS["minimax-01"] | {"num_hidden_layers": 4, "attn_type_list": [0, 0, 1, 0]}
    config |= {"rotary_dim": 16}  # whole heads: transformers knows no less
    folder = by_hand_folder(config)
    theirs = {
        "architectures": ["MiniMaxForCausalLM"],
        "model_type": "minimax",
        "layer_types": [("linear_attention", "full_attention")[kind] for kind in config["attn_type_list"]],
        "block_size": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    for part, short in (("full_attention", "full_attn"), ("linear_attention", "linear_attn"), ("mlp", "mlp")):
        theirs[f"{short}_alpha_factor"] = config[f"layernorm_{part}_alpha"]
        theirs[f"{short}_beta_factor"] = config[f"layernorm_{part}_beta"]
    return _theirs(folder, {k: v for k, v in config.items() if "layernorm_" not in k} | theirs, path), folder


def _blocks(path: Path) -> tuple[Any, Checkpoint]:
    """Blocks of 8 tokens, of which 3 are seen: of a text of 70, a third."""
    config = by_hand.CONFIGS["minimax-m3"]
    sparse = config["text_config"]["sparse_attention_config"] | {"sparse_topk_blocks": 3, "sparse_block_size": 8}
    text = config["text_config"] | {"sparse_attention_config": sparse, "num_hidden_layers": 3}
    text |= {"moe_layer_freq": [0, 1, 1], "shared_intermediate_size": 32}
    folder = by_hand_folder(config | {"text_config": text})
    theirs = text | {
        "architectures": ["MiniMaxM3VLForCausalLM"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "sparse_attention_config": sparse | {"sparse_attention_freq": [0, 1, 1]},
    }
    made = transformers.models.minimax_m3_vl
    model = made.MiniMaxM3VLForCausalLM(made.MiniMaxM3VLTextConfig(**theirs, attn_implementation="eager")).float()
    tensors = {name: torch.from_numpy(t.numpy().copy()) for name, t in folder.tensors.items()}
    model.load_state_dict(_renamed(tensors))
    return model.eval(), folder


def _renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    """MiniMax M3's tensors as transformers has them: gates with what they open, experts in one."""
    out = {}
    for name, tensor in tensors.items():
        start, _, end = name.replace("block_sparse_moe", "mlp").replace("index_", "indexer.").rpartition("mlp.")
        start = f"{start}mlp." if start else ""
        if end.startswith("experts."):
            if end.startswith("experts.0.w1"):
                of = name.removesuffix("0.w1.weight")
                first, down, second = (
                    torch.stack([tensors[f"{of}{e}.w{j}.weight"] for e in range(4)]) for j in (1, 2, 3)
                )
                out[f"{start}experts.gate_up_proj"] = torch.cat((first, second), 1)
                out[f"{start}experts.down_proj"] = down
        elif end.endswith("gate_proj.weight"):
            both = torch.cat((tensor, tensors[name.replace("gate_proj", "up_proj")]))
            out[start + end.replace("gate_proj", "gate_up_proj")] = both
        elif end == "e_score_correction_bias":
            out[f"{start}gate.{end}"] = tensor
        elif not end.endswith("up_proj.weight"):
            out[start + end] = tensor
    return out


def _chosen(name: str, **changes: Any) -> Any:
    """A tiny model whose indexer chooses 16 tokens, of a text of 70."""

    def made(path: Path) -> tuple[Any, Checkpoint]:
        theirs = type(tiny_models.build(name, path, index_topk=16, index_n_heads=16, **changes))
        return theirs.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval(), llmconv.open(path)

    return made


def _small_experts(path: Path) -> tuple[Any, Checkpoint]:
    """GroveMoE: Qwen 3's experts in transformers, and what its own code adds: small ones, two experts to each."""
    config = by_hand.CONFIGS["grovemoe"] | {"norm_topk_prob": True}
    folder = by_hand_folder(config)
    large = {name: tensor for name, tensor in folder.tensors.items() if "chunk_experts" not in name}
    kin = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
    model = _theirs(folder.but(tensors=large), config | kin, path)
    for i, layer in enumerate(model.model.layers):
        small = [
            [
                torch.from_numpy(folder.tensors[f"model.layers.{i}.mlp.chunk_experts.{g}.{part}_proj.weight"].numpy())
                for part in ("gate", "up", "down")
            ]
            for g in range(2)
        ]
        layer.mlp.register_forward_hook(lambda mlp, given, made, small=small: made + _added(mlp, given[0], small))
    return model, folder


def _added(mlp: Any, x: Any, small: list[list[Any]]) -> Any:
    linear, out = torch.nn.functional.linear, torch.zeros_like(x)
    scores, chosen = linear(x, mlp.gate.weight).softmax(-1).topk(2, -1)
    for k in range(2):
        for group, (gate, up, down) in enumerate(small):
            given = linear(torch.nn.functional.silu(linear(x, gate)) * linear(x, up), down)
            weight = scores[..., k] / scores.sum(-1) * (chosen[..., k] // 2 == group)
            out = out + given * weight[..., None]
    return 0.05 * out


_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_YARN |= {"mscale": 1.5, "mscale_all_dim": 0.5}
MODELS = {
    "grovemoe": _small_experts,
    "ling3": _ling,
    "ling3-yarn": functools.partial(_ling, rope_parameters=_YARN),
    "minimax-01": _lightning,
    "minimax-m3": _blocks,
    "deepseek-v3.2": _chosen("deepseek-v3.2"),
    "glm-5": _chosen("glm-5", num_hidden_layers=3, indexer_types=["full", "shared", "full"]),
}


_FIRST = ("ling3", "minimax-01", "minimax-m3")
_LATER = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in _FIRST]


@pytest.mark.parametrize("name", [*_FIRST, *_LATER])
def test_as_transformers_computes_it(name: str, tmp_path: Path) -> None:
    theirs, folder = MODELS[name](tmp_path / "hf")
    ours = llmconv.load(folder, "cpu", "f32")
    tokens = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = theirs(tokens).logits, ours(tokens)
        assert expected.std() > 0.01  # a model that says something
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

        cache = ours.cache(2, LENGTH)
        steps = [ours(tokens[:, :7], cache=cache)]
        steps += [ours(tokens[:, i : i + 1], cache=cache) for i in range(7, LENGTH - 6)]
        steps.append(ours(tokens[:, LENGTH - 6 :], cache=cache))  # several at once, after others
        torch.testing.assert_close(torch.cat(steps, 1), logits, atol=1e-4, rtol=0)

        mask = torch.ones(2, LENGTH, dtype=torch.bool)
        mask[1, :9] = False
        padded = ours(tokens.where(mask, 0), mask)
        torch.testing.assert_close(padded[0], logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(padded[1, 9:], ours(tokens[1:, 9:])[0], atol=1e-4, rtol=0)

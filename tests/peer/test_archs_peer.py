"""Our GGUF against the one that llama.cpp's own converter makes of the same tiny model: tensors and keys.

llama.cpp's Python files come from the folder that LLMCONV_LLAMA_CPP names (a checkout, or `vendor/llama.cpp` of the
llama-cpp-python source distribution).  Its converter runs in a process of its own, without vocabularies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import by_hand
import hf_models
import numpy as np
import pytest
import tiny_models

from llmconv import formats
from llmconv.convert import further
from llmconv.convert.dialects import hf
from llmconv.convert.quantizing.repack import repacked
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

# What the reference has no converter for.
OURS_ALONE = {"gptj", "opt", "opt-projected", "nomic-bert", "minimax-01-transformers", "ling3-transformers"}
# Of the last three the reference knows the published names alone, by hand.
# What it converts into something else: the positions of CamemBERT begin two rows too early, BERT's pooler is lost.
OURS_ALONE |= {"camembert", "bert-classifier"}
# Models made by hand: transformers does not have them, or not so.
BY_HAND = {
    "internlm2": hf_models.INTERNLM2 | {"rope_theta": 1000000.0},
    "baichuan": hf_models.BAICHUAN,
    "gpt-oss-mxfp4": hf_models.GPT_OSS
    | {
        "rope_theta": 150000.0,
        "rope_scaling": {"rope_type": "default"},
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "nomic-bert-published": {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "vocab_size": 96, "n_embd": 64, "n_layer": 2,
        "n_head": 4, "n_inner": 96, "n_positions": 8192, "max_trained_positions": 2048, "layer_norm_epsilon": 1e-12,
        "rotary_emb_base": 1000, "type_vocab_size": 2, "activation_function": "swiglu", "causal": False,
        "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    },
}  # fmt: skip
BY_HAND |= {name: config for name, config in by_hand.CONFIGS.items() if name not in by_hand.BITS_ALONE}
# What the reference refuses or gets wrong, and how: "error", "bytes" or "tensors".
REFUSED = {
    "baichuan": ("error", "it calls itself without end"),
    "jina5-small": ("error", "it takes it for a EuroBERT"),
    "mistral4": ("error", "it knows the multimodal class alone"),
    "kimi-linear-dense": ("error", "it does not know the names under which transformers saves dense layers"),
    "falcon-rw": ("error", "it takes the number of key heads for that of a grouped model"),
    "starcoder-heads-apart": ("bytes", "it takes every StarCoder for multi-query"),
    "gemma3": ("bytes", "it adds one to the norms of an F16 model in half precision"),
    "bitnet": ("error", "it knows the names of the first releases alone"),
    "bitnet-relu2": ("error", "it knows the names of the first releases alone"),
    "bitnet-1": ("bytes", "it rounds the weights, which the first releases did whenever they used them"),
    "bamba": ("bytes", "it pairs numbers of a head as if all of it turned"),
    "falcon-h1-normed-tied": ("bytes", "it multiplies the biases of queries and values as if they were weights"),
    "chameleon": ("bytes", "it takes the first head's norm for those of all"),
    "chameleon-swin": ("bytes", "it takes the first head's norm for those of all"),
    "cogvlm": ("tensors", "it leaves out the matrices for an image's tokens, without which llama.cpp loads no file"),
    "neobert": ("bytes", "it leaves each head's query, key and value together, which llama.cpp does not read so"),
    "deepseek-v4": ("error", "it knows packed experts alone"),
    "hy-v4-transformers": ("error", "it does not know the names under which transformers saves"),
    "stablelm-12b": ("error", "it loses the stacked norms of the heads"),
}
# What published config.json files say and transformers 5 no longer writes, or (None) does; the reference reads nothing
# else.  NULL stands for a null that it looks for.
NULL = "null"
PATCHES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_ctx": 128},
    "gpt2-untied-bf16": {"n_ctx": 128},
    "gpt-neox": {"rotary_pct": 0.25},
    "gpt-neox-serial-f16": {"rotary_pct": 1.0},
    "cohere2": {"rotary_pct": 1.0},
    "mpt": {"architectures": ["MPTForCausalLM"]},
    "glm": {"seq_length": 128, "layernorm_epsilon": 1.5625e-07},
    "solar-open": {"partial_rotary_factor": 1.0},
    "phimoe": {
        "architectures": ["PhiMoEForCausalLM"],
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 128,
    },
    "exaone": {"activation_function": "silu"},
    "kimi-linear": {
        "num_shared_experts": 1,
        "first_k_dense_replace": 0,
        "linear_attn_config": {"full_attn_layers": [2], "short_conv_kernel_size": 4, "head_dim": 16, "num_heads": 4},
    },
    "nemotron-h": {
        "norm_eps": 1e-5,
        "hybrid_override_pattern": "M*-",
        **dict.fromkeys(("num_experts_per_tok", "n_routed_experts", "n_group", "topk_group")),
    },
    "nemotron-h-moe": {"norm_eps": 1e-5, "hybrid_override_pattern": "ME*"},
    "falcon-h1": {"head_dim": 16, "rope_theta": 10000.0},
    "falcon-h1-bf16": {"head_dim": 16, "rope_theta": 10000.0},
    "falcon-h1-normed-tied": {"head_dim": 16, "rope_theta": 10000.0},
    "bamba": {"attn_rotary_emb": 8},
    "mimo2": {
        "hybrid_layer_pattern": [0, 1, 0],
        "topk_method": "noaux_tc",
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "partial_rotary_factor": 0.334,
        },
    },
    "granite-hybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "granite-hybrid-dense": {"layer_types": ["mamba", "attention", "mamba"]},
    "afmoe": {"route_norm": True},
    **{name: {"moe_intermediate_size": NULL} for name in ("gemma4-effective", "gemma4-unified")},
    "glm4-moe-lite": {"first_k_dense_replace": 1},
    "dots1": {"scoring_func": "sigmoid"},
    "minimax-m2": {"scoring_func": "sigmoid"},
    "exaone-moe": {"scoring_func": "sigmoid"},
    "hunyuan-moe": {"moe_intermediate_size": [96, 96], "moe_topk": [2, 2], "num_shared_expert": [1, 1]},
    "falcon-7b": {"num_kv_heads": 1},
    "modernbert": {"layer_norm_eps": 1e-5},
    "modernbert-reranker": {"layer_norm_eps": 1e-5},
    "eurobert": {"classifier_pooling": None},
    "nomic-bert-published": {  # recent releases of transformers add their own names with their own defaults
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "head_dim": 16,
        "rotary_emb_scale_base": NULL,
    },
}
PATCHES["nomic-moe"] = PATCHES["nomic-bert-published"] | {
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000},
}
PATCHES |= {name: by_hand.CONFIGS[name] for name in by_hand.PACKED}
PATCHES |= {  # whose settings transformers writes otherwise
    name: {"text_config": by_hand.CONFIGS[name].get("text_config", by_hand.CONFIGS[name])}
    for name in (
        *("glm5-next", "glm5-next-predicting", "qwen4exp", "qwen4exp-text", "hy-v4"),
        *("dots3", "dots3-rescaled", "dots3-predicting", "gemma4-dspark"),
    )
}
PATCHES["glm-5-next"] = {
    "mla_use_nope": True,
    "first_k_dense_replace": 1,
    "linear_attn_config": {
        "short_conv_kernel_size": 4,
        "head_dim": 16,
        "num_heads": 4,
        "gate_lower_bound": -5.0,
    },
}
PATCHES["qwen4-exp"] = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
PATCHES["dots3-transformers"] = {
    "scoring_func": "sigmoid",
    "apply_mla_qkv_lora_rescale": True,
    "sliding_window_size": 16,
    "first_k_dense_replace": 1,
    **{k: v for k, v in tiny_models.MODELS["dots3-transformers"].config.items() if k.startswith("swa_")},
}
PATCHES["ling3"] = by_hand.CONFIGS["ling3"] | {"num_nextn_predict_layers": 0}
PATCHES["minimax-m3"] = by_hand.CONFIGS["minimax-m3"]["text_config"]
PATCHES |= {name: by_hand.CONFIGS[name] for name in ("step3.5", "step3.7")}  # whose lists transformers takes apart

# Keys that only we write, by architecture; docs/architectures.md says why.
EXTRA_KEYS: dict[str, set[str]] = {
    "llama": {"attention.sliding_window", "attention.key_length", "attention.value_length"},
    "gemma4": {"final_logit_softcapping"},  # no cap: without the key llama.cpp caps at 30
    "gptneox": {"rope.freq_base"},
    "falcon": {"rope.freq_base"},
    "phi2": {"rope.freq_base"},
    "stablelm": {"rope.freq_base"},
    "starcoder2": {"attention.sliding_window"},
    "modern-bert": {"attention.layer_norm_rms_epsilon"},
    "deepseek2": {"expert_gating_func"},
    "exaone4": {"attention.key_length", "attention.value_length"},
    "chatglm": {"attention.key_length", "attention.value_length"},
    "ernie4_5-moe": {"attention.key_length", "attention.value_length"},
    "bailingmoe": {"attention.key_length", "attention.value_length"},
    "exaone": {  # recent releases of transformers read its configuration as a Llama's
        "attention.layer_norm_rms_epsilon",
        "attention.layer_norm_epsilon",
        "attention.key_length",
        "attention.value_length",
    },
    "qwen3next": {"expert_weights_norm"},
    "mimo2": {"moe_layers", "expert_gating_func", "expert_weights_norm", "expert_weights_scale"},
    "jamba": {"moe_layers"},
    "falcon-h1": {"logit_scale", "ssm.norm_before_gate", "scaled_by.ssm", "scaled_by.mlp"}
    | {f"scaled_by.{n}" for n in ("attention_in", "attention_out", "key", "ssm_in", "ssm_out", "embedding", "lm_head")},
    "kimi-linear": {"expert_gating_func", "rope.freq_base"},
    "mamba": {"ssm.dt_b_c_rms_epsilon"},
    "t5": {"logit_scale"},
    "orion": {"rope.freq_base"},
    "qwen": {"attention.layer_norm_rms_epsilon"},
    "bert": {"token_type_count"},
    "nomic-bert": {"token_type_count", "attention.key_length", "attention.value_length"},
    "apertus": {"attention.key_length", "attention.value_length"},
    "minicpm3": {"attention.value_length", "rope.freq_base"},
    "granite_swa": {"attention.key_length", "attention.value_length", "attention.rope_pattern"},
    "nanbeige": {"attention.key_length", "attention.value_length"},
    "cogvlm": {"rope.freq_base"},
    "laguna": {"attention.sliding_window_pattern"},
    "gemma3n": {"laurel_rank", "vocab_size_per_layer_input"},
    "llama4": {"attention.chunk_size", "attention.temperature_length"},
    "deepseek32": {"expert_gating_func"},
    "glm-dsa": {"expert_gating_func"},
    "mistral4": {"attention.temperature_scale", "attention.temperature_length"},
    "eagle3": {"draft_vocab_size", "attention.key_length", "attention.value_length"},
    "dflash": {"vocab_size", "draft_vocab_size", "markov_rank"},
    "jais": {"scaled_by.embedding", "scaled_by.lm_head"},
    "muse-glimmer": {"scaled_by.query"},
    "minimax-01": {"attention.recurrent_layers"},
    "llama-embed": {"attention.causal"},
    "neo-bert": {"attention.qkv_groups"},
    "jina-bert-v2": {"token_type_count"},
    "jina-bert-v3": {"token_type_count"},
    "nomic-bert-moe": {"token_type_count", "attention.key_length", "attention.value_length"},
    "deepseek4": {"vocab_size"},
    "kimi-k3": {"rope.freq_base"},
    "dots3note": {"rope.freq_base", "scaled_by.query", "scaled_by.latent", "scaled_by.window"},
    "glm5-next": {"expert_gating_func"},
    "qwen4exp": {"vocab_size", "ple.table_rows", "ple.table_parts", "ssm.output_gate"},
    "eurobert": {"classifier.pooling_type"},
    "qwen3tts": {"vocab_size", "codec_vocab_size", "word_embedding_length"},
}
# Which we keep in F32, as the routers and single rows of all models.
OTHER_TYPES: dict[str, str | tuple[str, ...]] = {
    "dbrx": "ffn_gate_inp.weight",
    "dspark": "conf_proj.weight",
    "nemotron-h-predicting": "blk.3.ffn_gate_inp.weight",
    **dict.fromkeys(("qwen4exp", "qwen4exp-text", "qwen4-exp"), ("indexer.q_proj.weight", "indexer.k_proj.weight")),
    **dict.fromkeys(by_hand.PACKED, ("_fn.weight", "_ape.weight", "r_gate.weight", "gate_inp.weight", "proj.weight")),
    "gemma4-dspark": "conf_proj.weight",
    "qwen3-tts": "token_embd.weight",
}

# Models with layers for further tokens, of which the reference writes either half alone.
HALVES = [
    f"{name} {mode}"
    for name in (
        *("step3.5", "mimo2-published", "nemotron-h-predicting", "qwen3.5-predicting", "qwen3-next-predicting"),
        *("deepseek4-predicting", "glm5-next-predicting", "dots3-predicting"),
    )
    for mode in ("mtp_only", "no_mtp")
]

DRIVER = """
import json, sys
from pathlib import Path
import torch
import conversion
from conversion import ModelBase, TextModel, get_model_architecture, get_model_class, ModelType, load_all_models
import gguf
load_all_models()
def every(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from every(sub)
for cls in [TextModel, *every(TextModel)]:
    if "set_vocab" in cls.__dict__:
        cls.set_vocab = lambda self: None
kinds = {"float32": gguf.LlamaFileType.ALL_F32, "float16": gguf.LlamaFileType.MOSTLY_F16,
         "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}
present = lambda hparams: {k: None if v == "null" else v for k, v in hparams.items() if v is not None}
result = {}
load = ModelBase.load_hparams
for name, folder, out, dtype, patch in json.loads(sys.stdin.read()):
    try:
        with torch.inference_mode():
            ModelBase.load_hparams = staticmethod(lambda *args, **more: present(load(*args, **more) | patch))
            hparams = ModelBase.load_hparams(Path(folder), False)
            cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
            if hasattr(cls, "_get_suppress_tokens"):  # by a vocabulary
                cls._get_suppress_tokens = lambda self: None
            if hasattr(cls, "lerp_weights"):  # which it keeps from one model to the next
                cls.lerp_weights.clear()
            cls.no_mtp, cls.mtp_only = name.endswith(" no_mtp"), name.endswith(" mtp_only")
            if not name.endswith("_mtp") and not cls.mtp_only:  # it wants one of models that don't say so
                inner = hparams.get("text_config") or {}
                said = {**hparams, **inner}.get("num_nextn_predict_layers") is not None
                files = Path(folder).glob("*.safetensors")
                cls.no_mtp = not said and not any(b"mtp.layers." in file.read_bytes() for file in files)
            more = {"hparams": hparams} if patch else {}
            cls(Path(folder), kinds[dtype], Path(out), target_model_dir=Path(folder), **more).write()
        result[name] = None
    except Exception as error:
        result[name] = f"{type(error).__name__}: {error}"
print("RESULT " + json.dumps(result))
"""


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every tiny model that is asked for, converted by the reference: name -> (folder, GGUF, error)."""
    wanted = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    wanted |= {name.split()[0] for name in wanted if name in HALVES}
    home = Path(os.environ.get("LLMCONV_LLAMA_CPP", ""))
    if not (home / "conversion" / "base.py").is_file():
        pytest.skip("LLMCONV_LLAMA_CPP does not name a folder with llama.cpp's conversion/")
    root = tmp_path_factory.mktemp("peer")
    jobs = []
    for name, tiny in tiny_models.MODELS.items():
        if name in OURS_ALONE or name not in wanted:
            continue
        tiny_models.build(name, root / name)
        if tiny.gguf in (
            "gemma3",
            "gemma-embedding",
            "gemma3n",
            "gemma4",
        ):  # the reference cuts the embedding to this vocabulary
            words = {f"w{i}": i for i in range(tiny.config["vocab_size"])}
            (root / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))
        jobs.append((name, str(root / name), str(root / f"{name}.gguf"), tiny.dtype, PATCHES.get(name, {})))
    for name, config in ((name, config) for name, config in BY_HAND.items() if name in wanted):
        form = 1 if name == "nomic-bert-published" else by_hand.FORMS.get(name, 0)
        prefix = {"prefix": by_hand.PREFIXES[name]} if name in by_hand.PREFIXES else {}
        made = by_hand.finished(name, hf_models.model(config, form=form, **prefix), packed=True)
        safetensors_file.save(made, root / name)
        words = {"vocab": {f"w{i}": i for i in range(96)}} if name.startswith("gemma") else {}  # it is cut to these
        (root / name / "tokenizer.json").write_text(
            json.dumps({"model": {"type": "WordPiece", **words}, "added_tokens": []})
        )
        jobs.append((name, str(root / name), str(root / f"{name}.gguf"), "bfloat16", PATCHES.get(name, {})))
    halves = [(half, *half.split()) for half in HALVES if half in wanted]
    for half, whole, _mode in halves:
        name, folder, _, *rest = next(job for job in jobs if job[0] == whole)
        jobs.append((half, folder, str(root / f"{half}.gguf"), *rest))
    # after whom the reference maps no other family's names
    jobs.sort(key=lambda job: (job[0].startswith("qwen4"), job[0] == "arctic"))
    path = os.pathsep.join([str(home / "gguf-py"), str(home)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    errors = json.loads(lines[-1].removeprefix("RESULT "))
    return {name: (Path(folder), Path(out), errors[name]) for name, folder, out, *_ in jobs}


def _ours(name: str, folder: Path) -> Checkpoint:
    """The folder's GGUF; packed experts as they are."""
    opened = formats.open(folder)
    return repacked(opened, hf.to_gguf).checkpoint if name in by_hand.PACKED else hf.to_gguf(opened)


@pytest.mark.parametrize("name", [*(n for n in tiny_models.MODELS if n not in OURS_ALONE), *BY_HAND, *HALVES])
def test_same_as_reference(name: str, reference: dict[str, Any]) -> None:
    folder, gguf, error = reference[name]
    kind, _why = REFUSED.get(name, ("", ""))
    assert bool(error) == (kind == "error"), error
    if error:
        return
    (folder / "tokenizer.json").unlink(missing_ok=True)
    ours, theirs = _ours(name.split()[0], folder), formats.open(gguf)
    if name in HALVES or name == "deepseek4-predicting":  # of which the reference never writes the whole
        ours = further.alone(ours) if name.endswith(" mtp_only") else further.without(ours)
    if kind == "tensors":
        ours.tensors = {key: tensor for key, tensor in ours.tensors.items() if "vis_" not in key}
    assert sorted(ours.tensors) == sorted(theirs.tensors)
    for key, their in theirs.tensors.items():
        our = ours.tensors[key]
        if key.endswith("nextn.eh_proj.weight") and their.type.name == "Q8_0":  # rounded by it alone
            our = ours.tensors[key] = our.astype(their.type)
        if key.endswith(OTHER_TYPES.get(name.split()[0], "?")):
            their = theirs.tensors[key] = their.astype(our.type)
        assert (our.shape, our.type.name) == (their.shape, their.type.name), key
    different = [
        k for k, their in theirs.tensors.items() if not np.array_equal(ours.tensors[k].blocks(), their.blocks())
    ]
    for key in [key for key in different if key.endswith(".ssm_a")]:  # torch's exp is not rounded as float64's is
        np.testing.assert_array_max_ulp(ours.tensors[key].numpy(), theirs.tensors[key].numpy(), 2)
        different.remove(key)
    if name == "qwen3-tts" and "token_embd.weight" in different:  # what an MLP makes, rounded to BF16 there
        ours_and_theirs = (found.tensors["token_embd.weight"].numpy() for found in (ours, theirs))
        np.testing.assert_allclose(*ours_and_theirs, rtol=1e-2, atol=1e-2)
        different.remove("token_embd.weight")
    assert bool(different) == (kind == "bytes"), different
    if name == "starcoder-heads-apart":
        return  # nor are the keys of its mistake ours
    arch = ours.metadata["general.architecture"]
    assert arch == theirs.metadata["general.architecture"]
    mine = {k.removeprefix(arch + "."): v for k, v in ours.metadata.items() if k.startswith(arch + ".")}
    peer = {k.removeprefix(arch + "."): v for k, v in theirs.metadata.items() if k.startswith(arch + ".")}
    if arch == "plamo2":  # with its list llama.cpp never ends
        assert mine.pop("attention.head_count") == max(peer.pop("attention.head_count"))
    extra = EXTRA_KEYS.get(arch, set())
    assert set(mine) ^ set(peer) <= extra, set(mine) ^ set(peer)
    for key, value in peer.items():
        if key in extra and key not in mine:
            continue
        assert type(mine[key]) is type(value) or isinstance(mine[key], list), key
        assert np.array_equal(np.asarray(mine[key]), np.asarray(value)), (key, mine[key], value)
    passed = {"general.file_type"} | (
        {"general.size_label"} if kind == "tensors" else set()
    )  # which counts all of them
    about = {k: v for k, v in theirs.metadata.items() if k.startswith("general.") and k not in passed}
    assert about == {k: v for k, v in ours.metadata.items() if k in about}
    assert ours.metadata["general.file_type"] == theirs.metadata.get(
        "general.file_type", ours.metadata["general.file_type"]
    )

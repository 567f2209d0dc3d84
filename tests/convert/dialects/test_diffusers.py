"""Image models in diffusers' folders become the GGUFs of their single files, and come back bit for bit.

What diffusers makes of a single file is written out here the way its own scripts do it: by replacing parts of names.
"""

# ruff: noqa: E501 (tables)

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from commands import run

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

BF16 = ml_dtypes.bfloat16
Arrays = dict[str, np.ndarray]
D = 64  # the width of all models here


def both(names: str, rows: int = D, columns: int = D) -> dict[str, tuple[int, ...]]:
    return {f"{n}.{end}": (rows, columns)[: 2 if end == "weight" else 1] for n in names.split() for end in ("weight", "bias")}  # fmt: skip


def vectors(names: str, size: int = D) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(names.split(), (size,))


def at(start: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {start + n: s for n, s in shapes.items()}


_STREAMS = {
    **both("img_attn.qkv txt_attn.qkv", 3 * D), **both("img_attn.proj txt_attn.proj"),
    **both("img_mod.lin txt_mod.lin", 6 * D), **both("img_mlp.0 txt_mlp.0", 2 * D), **both("img_mlp.2 txt_mlp.2", D, 2 * D),
    **vectors("img_attn.norm.query_norm.scale img_attn.norm.key_norm.scale txt_attn.norm.query_norm.scale txt_attn.norm.key_norm.scale", 16),
}  # fmt: skip
_JOINT = {
    **both("x_block.attn.qkv context_block.attn.qkv", 3 * D), **both("x_block.attn.proj x_block.mlp.fc2"), **both("x_block.mlp.fc1"),
    **both("x_block.adaLN_modulation.1", 6 * D), **vectors("x_block.attn.ln_q.weight x_block.attn.ln_k.weight", 16),
}  # fmt: skip
_MORE = {**both("context_block.attn.proj context_block.mlp.fc1 context_block.mlp.fc2"), **both("context_block.adaLN_modulation.1", 6 * D),
         **both("x_block.attn2.qkv", 3 * D), **both("x_block.attn2.proj")}  # fmt: skip
_ATTENTION = {**both("q k v o"), **vectors("norm_q.weight norm_k.weight")}
_LUMINA = {
    "attention.qkv.weight": (D + 2 * 16, D), "attention.out.weight": (D, D), **vectors("attention.q_norm.weight attention.k_norm.weight", 16),
    **{f"feed_forward.{n}.weight": (D, D) for n in ("w1", "w2", "w3")},
    **vectors("attention_norm1.weight attention_norm2.weight ffn_norm1.weight ffn_norm2.weight"),
}  # fmt: skip
_FF = {f"{n}.weight": (D, D) for n in ("c_fc1", "c_fc2", "c_proj")}

# Tensors of single files, of a layer or two.
SINGLE: dict[str, dict[str, tuple[int, ...]]] = {
    "flux": {
        **both("img_in txt_in final_layer.linear"), **both("final_layer.adaLN_modulation.1", 2 * D),
        **both(" ".join(f"{a}.{b}_layer" for a in ("time_in", "vector_in", "guidance_in") for b in ("in", "out"))),
        **at("double_blocks.0.", _STREAMS), **at("double_blocks.11.", _STREAMS),
        **at("single_blocks.0.", {**both("linear1", 5 * D), **both("linear2", D, 3 * D), **both("modulation.lin", 3 * D),
                                  **vectors("norm.query_norm.scale norm.key_norm.scale", 16)}),
    },
    "sd3": {
        "pos_embed": (1, 36, D), "x_embedder.proj.weight": (D, 16, 2, 2), "x_embedder.proj.bias": (D,),
        **both("context_embedder final_layer.linear t_embedder.mlp.0 t_embedder.mlp.2 y_embedder.mlp.0 y_embedder.mlp.2"),
        **both("final_layer.adaLN_modulation.1", 2 * D), **at("joint_blocks.0.", _JOINT | _MORE),
        **at("joint_blocks.1.", _JOINT | both("context_block.adaLN_modulation.1", 2 * D)),
    },
    "wan": {
        "patch_embedding.weight": (D, 16, 1, 2, 2), "patch_embedding.bias": (D,), "head.modulation": (1, 2, D), "img_emb.emb_pos": (1, 6, D),
        **both("time_embedding.0 time_embedding.2 text_embedding.0 text_embedding.2 head.head img_emb.proj.1 img_emb.proj.3"),
        **both("time_projection.1", 6 * D), **vectors("img_emb.proj.0.weight img_emb.proj.0.bias img_emb.proj.4.weight img_emb.proj.4.bias"),
        **at("blocks.0.", {"modulation": (1, 6, D), **both("ffn.0", 2 * D), **both("ffn.2", D, 2 * D), **vectors("norm3.weight norm3.bias"),
                           **at("self_attn.", _ATTENTION), **at("cross_attn.", _ATTENTION | both("k_img v_img") | vectors("norm_k_img.weight"))}),
    },
    "lumina2": {
        **both("x_embedder t_embedder.mlp.0 t_embedder.mlp.2 cap_embedder.1 final_layer.linear final_layer.adaLN_modulation.1"),
        "cap_embedder.0.weight": (D,), **at("context_refiner.0.", _LUMINA),
        **at("layers.0.", _LUMINA | both("adaLN_modulation.1", 4 * D)), **at("noise_refiner.1.", _LUMINA | both("adaLN_modulation.1", 4 * D)),
    },
    "aura": {
        "positional_encoding": (1, 36, D), "register_tokens": (1, 8, D), "cond_seq_linear.weight": (D, D), "final_linear.weight": (D, D),
        "modF.1.weight": (2 * D, D), **both("init_x_linear t_embedder.mlp.0 t_embedder.mlp.2"),
        **at("double_layers.3.", {**at("mlpX.", _FF), **at("mlpC.", _FF), "modX.1.weight": (6 * D, D), "modC.1.weight": (6 * D, D),
                                  **{f"attn.w{n}{p}.weight": (D, D) for n in "12" for p in "qkvo"}}),
        **at("single_layers.0.", {**at("mlp.", _FF), "modCX.1.weight": (6 * D, D), **{f"attn.w1{p}.weight": (D, D) for p in "qkvo"}}),
    },
}  # fmt: skip

# What diffusers replaces in a name, in this order; {qkv} stands for three tensors, {mlp} for these and a fourth.
REPLACED: dict[str, str] = {
    "flux": """time_in.in_layer=time_text_embed.timestep_embedder.linear_1 time_in.out_layer=time_text_embed.timestep_embedder.linear_2
        vector_in.in_layer=time_text_embed.text_embedder.linear_1 vector_in.out_layer=time_text_embed.text_embedder.linear_2
        guidance_in.in_layer=time_text_embed.guidance_embedder.linear_1 guidance_in.out_layer=time_text_embed.guidance_embedder.linear_2
        txt_in=context_embedder img_in=x_embedder final_layer.linear=proj_out final_layer.adaLN_modulation.1=norm_out.linear
        img_mod.lin=norm1.linear txt_mod.lin=norm1_context.linear img_attn.qkv=attn.to_{qkv} txt_attn.qkv=attn.add_{qkv}_proj
        img_attn.norm.query_norm.scale=attn.norm_q.weight img_attn.norm.key_norm.scale=attn.norm_k.weight
        txt_attn.norm.query_norm.scale=attn.norm_added_q.weight txt_attn.norm.key_norm.scale=attn.norm_added_k.weight
        norm.query_norm.scale=attn.norm_q.weight norm.key_norm.scale=attn.norm_k.weight img_attn.proj=attn.to_out.0 txt_attn.proj=attn.to_add_out
        img_mlp.0=ff.net.0.proj img_mlp.2=ff.net.2 txt_mlp.0=ff_context.net.0.proj txt_mlp.2=ff_context.net.2 modulation.lin=norm.linear
        linear1={mlp} linear2=proj_out double_blocks=transformer_blocks single_blocks=single_transformer_blocks""",
    "sd3": """x_embedder.proj=pos_embed.proj t_embedder.mlp.0=time_text_embed.timestep_embedder.linear_1
        t_embedder.mlp.2=time_text_embed.timestep_embedder.linear_2 y_embedder.mlp.0=time_text_embed.text_embedder.linear_1
        y_embedder.mlp.2=time_text_embed.text_embedder.linear_2 final_layer.linear=proj_out final_layer.adaLN_modulation.1=norm_out.linear
        x_block.attn.qkv=attn.to_{qkv} context_block.attn.qkv=attn.add_{qkv}_proj x_block.attn2.qkv=attn2.to_{qkv}
        x_block.attn.ln_=attn.norm_ x_block.attn.proj=attn.to_out.0 context_block.attn.proj=attn.to_add_out x_block.attn2.proj=attn2.to_out.0
        x_block.adaLN_modulation.1=norm1.linear context_block.adaLN_modulation.1=norm1_context.linear x_block.mlp.fc1=ff.net.0.proj
        x_block.mlp.fc2=ff.net.2 context_block.mlp.fc1=ff_context.net.0.proj context_block.mlp.fc2=ff_context.net.2
        joint_blocks=transformer_blocks""",
    "wan": """time_embedding.0=condition_embedder.time_embedder.linear_1 time_embedding.2=condition_embedder.time_embedder.linear_2
        text_embedding.0=condition_embedder.text_embedder.linear_1 text_embedding.2=condition_embedder.text_embedder.linear_2
        time_projection.1=condition_embedder.time_proj cross_attn=attn2 self_attn=attn1 .o.=.to_out.0. .q.=.to_q. .k.=.to_k. .v.=.to_v.
        .k_img.=.add_k_proj. .v_img.=.add_v_proj. .norm_k_img.=.norm_added_k. head.modulation=scale_shift_table head.head=proj_out
        modulation=scale_shift_table ffn.0=ffn.net.0.proj ffn.2=ffn.net.2 norm3=norm2 img_emb.proj.0=condition_embedder.image_embedder.norm1
        img_emb.proj.1=condition_embedder.image_embedder.ff.net.0.proj img_emb.proj.3=condition_embedder.image_embedder.ff.net.2
        img_emb.proj.4=condition_embedder.image_embedder.norm2 img_emb.emb_pos=condition_embedder.image_embedder.pos_embed""",
    "lumina2": """context_refiner.0.attention_norm1=context_refiner.0.norm1 final_layer.adaLN_modulation.1=norm_out.linear_1
        final_layer.linear=norm_out.linear_2 attention_norm1=norm1.norm attention_norm2=norm2 cap_embedder=time_caption_embed.caption_embedder
        t_embedder.mlp.0=time_caption_embed.timestep_embedder.linear_1 t_embedder.mlp.2=time_caption_embed.timestep_embedder.linear_2
        attention.qkv=attn.to_{qkv} attention=attn .out.=.to_out.0. k_norm=norm_k q_norm=norm_q w1=linear_1 w2=linear_2 w3=linear_3
        adaLN_modulation.1=norm1.linear""",
    "aura": """positional_encoding=pos_embed.pos_embed init_x_linear=pos_embed.proj cond_seq_linear=context_embedder final_linear=proj_out
        modF.1=norm_out.linear t_embedder.mlp.0=time_step_proj.linear_1 t_embedder.mlp.2=time_step_proj.linear_2 mlpX=ff mlpC=ff_context mlp.=ff.
        c_fc1=linear_1 c_fc2=linear_2 c_proj=out_projection modX.1=norm1.linear modCX.1=norm1.linear modC.1=norm1_context.linear
        w2q=to_q w2k=to_k w2v=to_v w2o=to_out.0 double_layers=joint_transformer_blocks single_layers=single_transformer_blocks""",
}  # fmt: skip


def theirs(model: str, name: str, values: np.ndarray) -> Arrays:
    """What diffusers makes of a tensor of the single file."""
    if name == "pos_embed":
        return {"pos_embed.pos_embed": values}
    new = name
    for old, by in (pair.split("=") for pair in REPLACED[model].split()):
        new = new.replace(old, by)
    if model == "aura":  # one stream's names in the blocks of two, the other's in the blocks of one
        two = "joint" in new
        for p, a, b in (("q", "add_q_proj", "to_q"), ("k", "add_k_proj", "to_k"), ("v", "add_v_proj", "to_v"), ("o", "to_add_out", "to_out.0")):  # fmt: skip
            new = new.replace(f"w1{p}", a if two else b)
    if model == "sd3" and "context_block.attn.ln_" in name:
        new = new.replace("norm_", "norm_added_")
    last = "joint_blocks.1.context_block.adaLN" in name
    if "norm_out.linear." in new or last:
        shift, scale = np.split(values, 2)
        return {new: np.concatenate([scale, shift])}
    if "{mlp}" in new:
        parts = np.split(values, [D, 2 * D, 3 * D])
        names = [new.replace("{mlp}", n) for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        return dict(zip(names, parts, strict=True))
    if "{qkv}" in new:
        rest = (len(values) - D) // 2 if model == "lumina2" else D
        return {new.replace("{qkv}", p): v for p, v in zip("qkv", np.split(values, [D, D + rest]), strict=True)}
    return {new: values}


def folder_of(path: Path, model: str, dtype: object = BF16) -> tuple[Arrays, Arrays]:
    """diffusers' folder of a model; the single file's arrays, and the folder's."""
    rng = np.random.default_rng(6)
    single = {name: rng.normal(0, 1, shape).astype(dtype) for name, shape in SINGLE[model].items()}
    split = {n: v for name, values in single.items() for n, v in theirs(model, name, values).items()}
    made = Checkpoint(dialect="plain", metadata={"format": "pt"})
    for name in sorted(split):  # as the library writes them
        made.add(Tensor.from_array(name, split[name]))
    path.mkdir()
    llmconv.save(made, path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps({"_class_name": model, "_diffusers_version": "0.35.0"}))
    return single, split


def same_files(one: Path, other: Path) -> None:
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


@pytest.mark.parametrize("model", SINGLE)
def test_there_and_back(tmp_path: Path, model: str) -> None:
    single, split = folder_of(tmp_path / "transformer", model)
    result = llmconv.convert_file(tmp_path / "transformer", tmp_path / "x.gguf")
    assert any(f"a {model} model, laid out as ComfyUI-GGUF reads it" in note for note in result.notes)
    gguf = llmconv.open(tmp_path / "x.gguf")
    assert set(gguf.tensors) == set(single)
    for name, values in single.items():
        assert np.array_equal(gguf.tensors[name].numpy().ravel(), values.astype(np.float32).ravel()), name
    llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "again")
    same_files(tmp_path / "transformer", tmp_path / "again")
    if model not in ("flux", "wan"):
        return
    # Quantized, its tensors come back under diffusers' names and in their shapes.
    run("quantize", tmp_path / "transformer", tmp_path / "q.gguf", "--type", "Q8_0")
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "rounded")
    back = llmconv.open(tmp_path / "rounded").tensors
    assert {n: t.shape for n, t in back.items()} == {n: v.shape for n, v in split.items()}
    assert all(np.abs(back[n].numpy() - split[n].astype(np.float32)).max() < 0.1 for n in back)


def test_parts_of_several_types_and_any_order(tmp_path: Path) -> None:
    folder_of(tmp_path / "hf", "flux")
    whole = llmconv.open(tmp_path / "hf")
    out = Checkpoint(dialect="plain", metadata={"format": "pt"})
    for name in reversed(whole.tensors):
        kind = np.float32 if name.endswith("to_k.weight") else BF16
        out.add(Tensor.from_array(name, whole.tensors[name].numpy().astype(kind)))
    llmconv.save(out, tmp_path / "x.safetensors")
    llmconv.convert_file(tmp_path / "x.safetensors", tmp_path / "x.gguf")
    assert "double_blocks.0.img_attn.qkv.weight" in llmconv.open(tmp_path / "x.gguf").tensors
    llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()


def test_what_stands_in_the_way_is_said(tmp_path: Path) -> None:
    _, split = folder_of(tmp_path / "hf", "flux")

    def notes(**changes: np.ndarray | None) -> str:
        made = Checkpoint(dialect="plain")
        for name, values in (split | {n.replace("__", "."): v for n, v in changes.items()}).items():
            if values is not None:
                made.add(Tensor.from_array(name, values))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        llmconv.save(made, path)
        said = llmconv.convert_file(path, path.with_suffix(".gguf")).notes
        assert "x_embedder.weight" in llmconv.open(path.with_suffix(".gguf")).tensors  # as it was
        llmconv.convert_file(path.with_suffix(".gguf"), path.with_name("back-" + path.name))
        assert path.with_name("back-" + path.name).read_bytes() == path.read_bytes()
        return " ".join(said)

    ones = np.ones((3, D), np.float32)
    assert "'controlnet.weight' is none known here of a flux model" in notes(controlnet__weight=ones)
    assert "'transformer_blocks.0.attn.to_k.weight' is missing" in notes(transformer_blocks__0__attn__to_k__weight=None)
    assert "'norm_out.linear.weight' has another shape" in notes(norm_out__linear__weight=ones)
    assert "another shape or type" in notes(transformer_blocks__0__attn__to_k__weight=np.ones((D, 5), np.float32))
    refused = run("convert", tmp_path / "hf", tmp_path / "p.gguf", "--layout", "plain")
    assert refused.code == 0 and "x_embedder.weight" in llmconv.open(tmp_path / "p.gguf").tensors


def test_a_whole_pipeline_is_told_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "FLUX").mkdir()
    (tmp_path / "FLUX" / "model_index.json").write_text("{}")
    folder_of(tmp_path / "FLUX" / "transformer", "flux")
    with pytest.raises(llmconv.BadFile, match=r"a pipeline of several models.*give that of one, 'transformer'"):
        llmconv.convert_file(tmp_path / "FLUX", tmp_path / "x.gguf")


def test_records_that_were_edited_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "hf", "lumina2")
    llmconv.convert_file(tmp_path / "hf", tmp_path / "x.gguf")
    for key, value, sentence in (
        ("llmconv.diffusers", "kandinsky", "expected one of flux"),
        ("llmconv.diffusers.rows", '{"layers.{}.attention.qkv.weight":[1,2,3]}', "does not describe"),
        ("llmconv.diffusers.rows", "[]", "is no JSON object"),
    ):
        run("edit", tmp_path / "x.gguf", "--set", f"{key}={value}", "-o", tmp_path / "y.gguf", "--force")
        with pytest.raises(llmconv.BadFile, match=sentence):
            llmconv.convert_file(tmp_path / "y.gguf", tmp_path / "again")

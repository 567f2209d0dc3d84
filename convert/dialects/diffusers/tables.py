"""Image models by the names of their single files, which ComfyUI takes, and by diffusers'.

Sources: comfyanonymous/ComfyUI, comfy/utils.py; huggingface/diffusers, loaders/single_file_utils.py.
"""

from __future__ import annotations

from llmconv.convert.dialects.diffusers.lines import Line, Table, lines

__all__ = ["TABLES"]

_QKV = "attn.to_q.* + attn.to_k.* + attn.to_v.*"
_ADDED_QKV = "attn.add_q_proj.* + attn.add_k_proj.* + attn.add_v_proj.*"
_LAST_NORM = "final_layer.adaLN_modulation.1.* = ~norm_out.linear.*"


def _linears(single: str, parts: str, *pairs: tuple[str, str]) -> tuple[Line, ...]:
    """Weight and bias of each pair."""
    return tuple(Line(f"{single}{a}.*", (f"{parts}{b}.*",)) for a, b in pairs)


def _same(*names: str) -> tuple[Line, ...]:
    """Names that are the same on both sides."""
    return tuple(Line(name, (name,)) for name in names)


def _two(single: str, first: str, second: str, parts: str) -> tuple[Line, ...]:
    """The two layers of an embedding of a number or a text."""
    return _linears(single, parts, (first, "linear_1"), (second, "linear_2"))


_FLUX_ENDS = (
    *_linears("", "", ("txt_in", "context_embedder"), ("img_in", "x_embedder"), ("final_layer.linear", "proj_out")),
    *lines(_LAST_NORM),
)
_FLUX_DOUBLE = (
    f"""
    img_attn.qkv.* = {_QKV}
    txt_attn.qkv.* = {_ADDED_QKV}
    img_attn.norm.query_norm.scale = attn.norm_q.weight
    img_attn.norm.key_norm.scale = attn.norm_k.weight
    txt_attn.norm.query_norm.scale = attn.norm_added_q.weight
    txt_attn.norm.key_norm.scale = attn.norm_added_k.weight
    img_attn.proj.* = attn.to_out.0.*
    txt_attn.proj.* = attn.to_add_out.*
    """,
    "double_blocks.{i}.",
    "transformer_blocks.{i}.",
)
_FLUX_SINGLE = (
    """
    norm.query_norm.scale = attn.norm_q.weight
    norm.key_norm.scale = attn.norm_k.weight
    """,
    "single_blocks.{i}.",
    "single_transformer_blocks.{i}.",
)

FLUX = Table(
    "flux",
    (
        *_two("time_in.", "in_layer", "out_layer", "time_text_embed.timestep_embedder."),
        *_two("vector_in.", "in_layer", "out_layer", "time_text_embed.text_embedder."),
        *_two("guidance_in.", "in_layer", "out_layer", "time_text_embed.guidance_embedder."),
        *_FLUX_ENDS,
        *lines(*_FLUX_DOUBLE),
        *lines(
            """
            img_mod.lin.* = norm1.linear.*
            txt_mod.lin.* = norm1_context.linear.*
            img_mlp.0.* = ff.net.0.proj.*
            img_mlp.2.* = ff.net.2.*
            txt_mlp.0.* = ff_context.net.0.proj.*
            txt_mlp.2.* = ff_context.net.2.*
            """,
            *_FLUX_DOUBLE[1:],
        ),
        *lines(*_FLUX_SINGLE),
        *lines(
            f"""
            modulation.lin.* = norm.linear.*
            linear1.* = {_QKV} + proj_mlp.*
            linear2.* = proj_out.*
            """,
            *_FLUX_SINGLE[1:],
        ),
        *_same("distilled_guidance_layer.in_proj.*", "distilled_guidance_layer.out_proj.*"),  # Chroma's
        *lines(
            """
            layers.{i}.in_layer.* = layers.{i}.linear_1.*
            layers.{i}.out_layer.* = layers.{i}.linear_2.*
            norms.{i}.scale = norms.{i}.weight
            """,
            "distilled_guidance_layer.",
            "distilled_guidance_layer.",
        ),
    ),
)

FLUX_2 = Table(
    "flux2",
    (
        *_two("time_in.", "in_layer", "out_layer", "time_guidance_embed.timestep_embedder."),
        *_two("guidance_in.", "in_layer", "out_layer", "time_guidance_embed.guidance_embedder."),
        *_FLUX_ENDS,
        *(
            Line(f"{name}.lin.*", (f"{name}.linear.*",))
            for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
        ),
        *lines(*_FLUX_DOUBLE),
        *lines(
            """
            img_mlp.0.* = ff.linear_in.*
            img_mlp.2.* = ff.linear_out.*
            txt_mlp.0.* = ff_context.linear_in.*
            txt_mlp.2.* = ff_context.linear_out.*
            """,
            *_FLUX_DOUBLE[1:],
        ),
        *lines(*_FLUX_SINGLE),
        *lines(
            """
            linear1.* = attn.to_qkv_mlp_proj.*
            linear2.* = attn.to_out.*
            """,
            *_FLUX_SINGLE[1:],
        ),
    ),
)

SD3 = Table(
    "sd3",
    (
        *_same("context_embedder.*"),
        *lines(
            f"""
            pos_embed = pos_embed.pos_embed
            x_embedder.proj.* = pos_embed.proj.*
            final_layer.linear.* = proj_out.*
            {_LAST_NORM}
            """
        ),
        *_two("t_embedder.", "mlp.0", "mlp.2", "time_text_embed.timestep_embedder."),
        *_two("y_embedder.", "mlp.0", "mlp.2", "time_text_embed.text_embedder."),
        *lines(
            f"""
            x_block.attn.qkv.* = {_QKV}
            x_block.attn.ln_q.weight = attn.norm_q.weight
            x_block.attn.ln_k.weight = attn.norm_k.weight
            x_block.attn.proj.* = attn.to_out.0.*
            x_block.attn2.qkv.* = attn2.to_q.* + attn2.to_k.* + attn2.to_v.*
            x_block.attn2.ln_q.weight = attn2.norm_q.weight
            x_block.attn2.ln_k.weight = attn2.norm_k.weight
            x_block.attn2.proj.* = attn2.to_out.0.*
            x_block.adaLN_modulation.1.* = norm1.linear.*
            x_block.mlp.fc1.* = ff.net.0.proj.*
            x_block.mlp.fc2.* = ff.net.2.*
            context_block.attn.qkv.* = {_ADDED_QKV}
            context_block.attn.ln_q.weight = attn.norm_added_q.weight
            context_block.attn.ln_k.weight = attn.norm_added_k.weight
            context_block.attn.proj.* = attn.to_add_out.*
            context_block.adaLN_modulation.1.* = ~norm1_context.linear.*
            context_block.mlp.fc1.* = ff_context.net.0.proj.*
            context_block.mlp.fc2.* = ff_context.net.2.*
            """,
            "joint_blocks.{i}.",
            "transformer_blocks.{i}.",
            unless="ff_context.net.2.weight",
        ),
    ),
)

_WAN_BLOCK = """
    self_attn.q.* = attn1.to_q.*
    self_attn.k.* = attn1.to_k.*
    self_attn.v.* = attn1.to_v.*
    self_attn.o.* = attn1.to_out.0.*
    self_attn.norm_q.weight = attn1.norm_q.weight
    self_attn.norm_k.weight = attn1.norm_k.weight
    cross_attn.q.* = attn2.to_q.*
    cross_attn.k.* = attn2.to_k.*
    cross_attn.v.* = attn2.to_v.*
    cross_attn.o.* = attn2.to_out.0.*
    cross_attn.norm_q.weight = attn2.norm_q.weight
    cross_attn.norm_k.weight = attn2.norm_k.weight
    cross_attn.k_img.* = attn2.add_k_proj.*
    cross_attn.v_img.* = attn2.add_v_proj.*
    cross_attn.norm_k_img.weight = attn2.norm_added_k.weight
    norm3.* = norm2.*
    ffn.0.* = ffn.net.0.proj.*
    ffn.2.* = ffn.net.2.*
    modulation = scale_shift_table
    before_proj.* = proj_in.*
    after_proj.* = proj_out.*
"""

WAN = Table(
    "wan",
    (
        *_same("patch_embedding.*", "vace_patch_embedding.*"),
        *_two("time_embedding.", "0", "2", "condition_embedder.time_embedder."),
        *_two("text_embedding.", "0", "2", "condition_embedder.text_embedder."),
        *lines(
            """
            time_projection.1.* = condition_embedder.time_proj.*
            img_emb.proj.0.* = condition_embedder.image_embedder.norm1.*
            img_emb.proj.1.* = condition_embedder.image_embedder.ff.net.0.proj.*
            img_emb.proj.3.* = condition_embedder.image_embedder.ff.net.2.*
            img_emb.proj.4.* = condition_embedder.image_embedder.norm2.*
            img_emb.emb_pos = condition_embedder.image_embedder.pos_embed
            head.head.* = proj_out.*
            head.modulation = scale_shift_table
            """
        ),
        *lines(_WAN_BLOCK, "blocks.{i}.", "blocks.{i}."),
        *lines(_WAN_BLOCK, "vace_blocks.{i}.", "vace_blocks.{i}."),
    ),
)

_LUMINA_BLOCK = f"""
    attention.qkv.* = {_QKV}
    attention.out.* = attn.to_out.0.*
    attention.q_norm.weight = attn.norm_q.weight
    attention.k_norm.weight = attn.norm_k.weight
    feed_forward.w1.weight = feed_forward.linear_1.weight
    feed_forward.w2.weight = feed_forward.linear_2.weight
    feed_forward.w3.weight = feed_forward.linear_3.weight
    attention_norm2.weight = norm2.weight
    ffn_norm1.weight = ffn_norm1.weight
    ffn_norm2.weight = ffn_norm2.weight
"""
_LUMINA_NORM = """
    adaLN_modulation.1.* = norm1.linear.*
    attention_norm1.weight = norm1.norm.weight
"""

LUMINA_2 = Table(
    "lumina2",
    (
        *_same("x_embedder.*"),
        *_two("t_embedder.", "mlp.0", "mlp.2", "time_caption_embed.timestep_embedder."),
        *lines(
            """
            cap_embedder.0.weight = time_caption_embed.caption_embedder.0.weight
            cap_embedder.1.* = time_caption_embed.caption_embedder.1.*
            final_layer.adaLN_modulation.1.* = norm_out.linear_1.*
            final_layer.linear.* = norm_out.linear_2.*
            """
        ),
        *(
            line
            for stack in ("layers.{i}.", "noise_refiner.{i}.")
            for line in lines(_LUMINA_BLOCK + _LUMINA_NORM, stack, stack)
        ),
        *lines(_LUMINA_BLOCK, "context_refiner.{i}.", "context_refiner.{i}."),
        Line("context_refiner.{i}.attention_norm1.weight", ("context_refiner.{i}.norm1.weight",)),
    ),
)

_Z_BLOCK = """
    attention.qkv.weight = attention.to_q.weight + attention.to_k.weight + attention.to_v.weight
    attention.out.* = attention.to_out.0.*
    attention.q_norm.weight = attention.norm_q.weight
    attention.k_norm.weight = attention.norm_k.weight
"""
_Z_SAME = (
    *("attention_norm1.weight", "attention_norm2.weight", "ffn_norm1.weight", "ffn_norm2.weight"),
    *("feed_forward.w1.weight", "feed_forward.w2.weight", "feed_forward.w3.weight", "adaLN_modulation.0.*"),
)

Z_IMAGE = Table(
    "z-image",
    (
        *_same("cap_embedder.0.weight", "cap_embedder.1.*", "cap_pad_token", "x_pad_token"),
        *_same("t_embedder.mlp.0.*", "t_embedder.mlp.2.*"),
        *_linears(
            *("", ""),
            ("x_embedder", "all_x_embedder.2-1"),
            ("final_layer.linear", "all_final_layer.2-1.linear"),
            ("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
        ),
        *(
            line
            for stack in ("layers.{i}.", "noise_refiner.{i}.", "context_refiner.{i}.")
            for line in (*lines(_Z_BLOCK, stack, stack), *_same(*(stack + name for name in _Z_SAME)))
        ),
    ),
)

_AURA_FF = """
    {at}.c_fc1.weight = {to}.linear_1.weight
    {at}.c_fc2.weight = {to}.linear_2.weight
    {at}.c_proj.weight = {to}.out_projection.weight
"""

AURA_FLOW = Table(
    "aura",
    (
        *_same("register_tokens"),
        *lines(
            """
            positional_encoding = pos_embed.pos_embed
            init_x_linear.* = pos_embed.proj.*
            cond_seq_linear.weight = context_embedder.weight
            final_linear.weight = proj_out.weight
            modF.1.weight = ~norm_out.linear.weight
            """
        ),
        *_two("t_embedder.", "mlp.0", "mlp.2", "time_step_proj."),
        *lines(
            """
            attn.w1q.weight = attn.add_q_proj.weight
            attn.w1k.weight = attn.add_k_proj.weight
            attn.w1v.weight = attn.add_v_proj.weight
            attn.w1o.weight = attn.to_add_out.weight
            attn.w2q.weight = attn.to_q.weight
            attn.w2k.weight = attn.to_k.weight
            attn.w2v.weight = attn.to_v.weight
            attn.w2o.weight = attn.to_out.0.weight
            modX.1.weight = norm1.linear.weight
            modC.1.weight = norm1_context.linear.weight
            """,
            *("double_layers.{i}.", "joint_transformer_blocks.{i}."),
        ),
        *lines(
            _AURA_FF.replace("{at}", "mlpX").replace("{to}", "ff").strip()
            + _AURA_FF.replace("{at}", "mlpC").replace("{to}", "ff_context").rstrip(),
            *("double_layers.{i}.", "joint_transformer_blocks.{i}."),
        ),
        *lines(
            """
            attn.w1q.weight = attn.to_q.weight
            attn.w1k.weight = attn.to_k.weight
            attn.w1v.weight = attn.to_v.weight
            attn.w1o.weight = attn.to_out.0.weight
            modCX.1.weight = norm1.linear.weight
            """,
            *("single_layers.{i}.", "single_transformer_blocks.{i}."),
        ),
        *lines(
            _AURA_FF.replace("{at}", "mlp").replace("{to}", "ff"),
            *("single_layers.{i}.", "single_transformer_blocks.{i}."),
        ),
    ),
)

HUNYUAN_VIDEO = Table(
    "hyvid",
    (
        *_two("time_in.", "mlp.0", "mlp.2", "time_text_embed.timestep_embedder."),
        *_two("guidance_in.", "mlp.0", "mlp.2", "time_text_embed.guidance_embedder."),
        *_two("vector_in.", "in_layer", "out_layer", "time_text_embed.text_embedder."),
        *_two("txt_in.t_embedder.", "mlp.0", "mlp.2", "context_embedder.time_text_embed.timestep_embedder."),
        *_two("txt_in.c_embedder.", "linear_1", "linear_2", "context_embedder.time_text_embed.text_embedder."),
        *lines(
            f"""
            img_in.proj.* = x_embedder.proj.*
            txt_in.input_embedder.* = context_embedder.proj_in.*
            final_layer.linear.* = proj_out.*
            {_LAST_NORM}
            """
        ),
        *lines(
            f"""
            norm1.* = norm1.*
            norm2.* = norm2.*
            self_attn_qkv.* = {_QKV}
            self_attn_proj.* = attn.to_out.0.*
            mlp.fc1.* = ff.net.0.proj.*
            mlp.fc2.* = ff.net.2.*
            adaLN_modulation.1.* = norm_out.linear.*
            """,
            "txt_in.individual_token_refiner.blocks.{i}.",
            "context_embedder.token_refiner.refiner_blocks.{i}.",
        ),
        *lines(
            f"""
            img_mod.linear.* = norm1.linear.*
            txt_mod.linear.* = norm1_context.linear.*
            img_attn_qkv.* = {_QKV}
            txt_attn_qkv.* = {_ADDED_QKV}
            img_attn_q_norm.weight = attn.norm_q.weight
            img_attn_k_norm.weight = attn.norm_k.weight
            txt_attn_q_norm.weight = attn.norm_added_q.weight
            txt_attn_k_norm.weight = attn.norm_added_k.weight
            img_attn_proj.* = attn.to_out.0.*
            txt_attn_proj.* = attn.to_add_out.*
            img_mlp.fc1.* = ff.net.0.proj.*
            img_mlp.fc2.* = ff.net.2.*
            txt_mlp.fc1.* = ff_context.net.0.proj.*
            txt_mlp.fc2.* = ff_context.net.2.*
            """,
            *_FLUX_DOUBLE[1:],
        ),
        *lines(
            f"""
            modulation.linear.* = norm.linear.*
            linear1.* = {_QKV} + proj_mlp.*
            linear2.* = proj_out.*
            q_norm.weight = attn.norm_q.weight
            k_norm.weight = attn.norm_k.weight
            """,
            *_FLUX_SINGLE[1:],
        ),
    ),
)

LTX_VIDEO = Table(
    "ltxv",
    (
        *_linears("", "", ("patchify_proj", "proj_in"), ("adaln_single.linear", "time_embed.linear")),
        *_two(
            *("adaln_single.emb.timestep_embedder.", "linear_1", "linear_2"),
            "time_embed.emb.timestep_embedder.",
        ),
        *_same("caption_projection.linear_1.*", "caption_projection.linear_2.*", "proj_out.*", "scale_shift_table"),
        *_same("transformer_blocks.{i}.ff.net.0.proj.*", "transformer_blocks.{i}.ff.net.2.*"),
        *_same("transformer_blocks.{i}.scale_shift_table"),
        *(
            line
            for attn in ("transformer_blocks.{i}.attn1.", "transformer_blocks.{i}.attn2.")
            for line in (
                *_same(*(f"{attn}{name}.*" for name in ("to_q", "to_k", "to_v", "to_out.0"))),
                Line(attn + "q_norm.weight", (attn + "norm_q.weight",)),
                Line(attn + "k_norm.weight", (attn + "norm_k.weight",)),
            )
        ),
    ),
)

TABLES = (FLUX, FLUX_2, SD3, WAN, LUMINA_2, Z_IMAGE, AURA_FLOW, HUNYUAN_VIDEO, LTX_VIDEO)

"""Image models of diffusers' own classes as single files, which its own functions make the same models of again."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np
import pytest

from llmconv.convert.dialects.diffusers import single_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_FLUX = _HEADS | {"num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 24, "in_channels": 16}
_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 40, "freq_dim": 16, "text_dim": 20}
_WIDE = ("hidden_size = 3072", "hidden_size = 32")
_INNER = ("inner_dim = 3072", "inner_dim = 32")
MODELS: dict[str, tuple[dict[str, Any], str, tuple[tuple[str, str], ...]]] = {
    "FluxTransformer2DModel": (
        _FLUX | {"pooled_projection_dim": 20, "guidance_embeds": True, "axes_dims_rope": (4, 4, 8)},
        "convert_flux_transformer_checkpoint_to_diffusers",
        (_INNER,),
    ),
    "Flux2Transformer2DModel": (
        _FLUX | {"axes_dims_rope": (4, 4, 4, 4)},
        "convert_flux2_transformer_checkpoint_to_diffusers",
        (),
    ),
    "ChromaTransformer2DModel": (
        _FLUX
        | {"axes_dims_rope": (4, 4, 8), "approximator_num_channels": 8}
        | {"approximator_hidden_dim": 16, "approximator_layers": 2},
        "convert_chroma_transformer_checkpoint_to_diffusers",
        (_INNER,),
    ),
    "SD3Transformer2DModel": (
        _HEADS
        | {"num_layers": 3, "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 20}
        | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm", "sample_size": 8, "pos_embed_max_size": 8},
        "convert_sd3_transformer_checkpoint_to_diffusers",
        (),
    ),
    "WanTransformer3DModel": (
        _WAN | {"num_layers": 2, "image_dim": 18, "added_kv_proj_dim": 24},
        "convert_wan_transformer_to_diffusers",
        (),
    ),
    "WanVACETransformer3DModel": (
        _WAN | {"num_layers": 3, "vace_layers": [0, 2]},
        "convert_wan_transformer_to_diffusers",
        (),
    ),
    "Lumina2Transformer2DModel": (
        {"hidden_size": 48, "num_layers": 2, "num_refiner_layers": 2, "num_attention_heads": 6}
        | {"num_kv_heads": 2, "cap_feat_dim": 20, "axes_dim_rope": (2, 2, 4)},
        "convert_lumina2_to_diffusers",
        (("q_dim = 2304", "q_dim = 48"), ("v_dim = 768", "v_dim = 16")),
    ),
    "ZImageTransformer2DModel": (
        {"dim": 48, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 20}
        | {"axes_dims": [4, 6, 6], "axes_lens": [16, 16, 16]},
        "convert_z_image_transformer_checkpoint_to_diffusers",
        (),
    ),
    "AuraFlowTransformer2DModel": (
        {"num_mmdit_layers": 4, "num_single_dit_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4}
        | {"joint_attention_dim": 20, "caption_projection_dim": 32, "pos_embed_max_size": 16},
        "convert_auraflow_transformer_checkpoint_to_diffusers",
        (),
    ),
    "HunyuanVideoTransformer3DModel": (
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 2}
        | {"text_embed_dim": 20, "pooled_projection_dim": 12, "rope_axes_dim": (4, 4, 8)},
        "convert_hunyuan_video_transformer_to_diffusers",
        (_WIDE,),
    ),
    "LTXVideoTransformer3DModel": (
        {"in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 8}
        | {"cross_attention_dim": 16, "num_layers": 28, "caption_channels": 12},
        "convert_ltx_transformer_checkpoint_to_diffusers",
        (),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_made_again_by_diffusers(name: str) -> None:
    settings, function, widths = MODELS[name]
    utils = importlib.import_module("diffusers.loaders.single_file_utils")
    source = inspect.getsource(getattr(utils, function))
    for published, tiny in widths:  # it knows models of one width
        assert published in source
        source = source.replace(published, tiny)
    known = dict(vars(utils))
    exec(source, known)
    model = getattr(diffusers, name)(**settings)
    generator = torch.Generator().manual_seed(0)
    wanted = {key: torch.randn(value.shape, generator=generator) for key, value in model.state_dict().items()}
    folder = Checkpoint(dialect="plain")
    for key in sorted(wanted):
        folder.add(Tensor.from_array(key, wanted[key].numpy()))
    made, keys = single_file.as_single_file(folder)
    assert keys, made.notes
    again = known[function]({key: torch.from_numpy(np.array(t.numpy())) for key, t in made.tensors.items()})
    again = {key: value for key, value in again.items() if value is not None}
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[key], value) for key, value in wanted.items())
    back = single_file.as_folder(made, keys)
    assert list(back.tensors) == list(folder.tensors)
    assert all(np.array_equal(back.tensors[key].numpy(), wanted[key].numpy()) for key in wanted)

"""Nanbeige 4.2: a Llama whose layers may be gone through several times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.llama.llama import LLAMA, NOT_DENSE
from llmconv.convert.archs.parts import HEAD_DIM
from llmconv.convert.tables.architecture import HfName
from llmconv.convert.tables.loader import OUT_BIAS, Loader
from llmconv.convert.tables.ops import Dims


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    own["num_loops"] = np.uint32(max(int(config.get("num_loops") or 1), 1))
    own["skip_loop_final_norm"] = bool(config.get("skip_loop_final_norm", False))


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["num_loops"] = int(own.get("num_loops", 1))
    config["skip_loop_final_norm"] = bool(own.get("skip_loop_final_norm", False))


NANBEIGE = LLAMA.variant(
    "nanbeige",
    HfName("NanbeigeForCausalLM", "nanbeige"),
    drop=NOT_DENSE,
    keys=HEAD_DIM,
    finish=_finish,
    rebuild=_rebuild,
    reads="num_loops skip_loop_final_norm",
    loader=Loader(refused=OUT_BIAS),
)

ARCHITECTURES = (NANBEIGE,)

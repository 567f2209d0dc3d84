"""Rows that families with selective scans share."""

from __future__ import annotations

import dataclasses

from llmconv.convert.tables.architecture import Row, row
from llmconv.convert.tables.ops import NegativeExp, Reshape
from llmconv.convert.tables.rows import Optional

__all__ = ["ARCHITECTURES", "NO_LIMIT", "convolution", "dual_scan", "only", "selective_scan"]

ARCHITECTURES = ()

NO_LIMIT = ([0.0, float("inf")], (0.0, float("inf")), [0.0, {"__float__": "Infinity"}])
"""How configurations say that a scan's steps may be of any size, which is all that is computed here."""


def only(rows: tuple[Row, ...], when: str) -> tuple[Row, ...]:
    """The rows where the expression holds, and what they ask for themselves."""
    return tuple(dataclasses.replace(r, when=f"({when}) and ({r.when})" if r.when else when) for r in rows)


def convolution(
    gguf: str, hf: str, channels: str, when: str = "", bias: Optional = "use_conv_bias=true"
) -> tuple[Row, ...]:
    """Rows of a convolution of each channel with its past."""
    whole, flat = (channels, 1, "d_conv"), (channels, "d_conv")
    return (
        row(f"{gguf}.weight", f"{hf}.weight", f"{channels}, d_conv", Reshape(whole, flat), when=when),
        row(f"{gguf}.bias", f"{hf}.bias", channels, when=when, optional=bias),
    )


def selective_scan(
    at: str, when: str = "", bias: str = "use_bias", conv_bias: str = "use_conv_bias=true"
) -> tuple[Row, ...]:
    """Rows of Mamba 1's mixer, which is at `at` in a layer."""
    return (
        row("blk.{i}.ssm_in.weight", at + "in_proj.weight", "2 * d_inner, n_embd", when=when),
        row("blk.{i}.ssm_in.bias", at + "in_proj.bias", "2 * d_inner", when=when, optional=bias),
        *convolution("blk.{i}.ssm_conv1d", at + "conv1d", "d_inner", when, conv_bias),
        row("blk.{i}.ssm_x.weight", at + "x_proj.weight", "dt_rank + 2 * d_state, d_inner", when=when),
        row("blk.{i}.ssm_dt.weight", at + "dt_proj.weight", "d_inner, dt_rank", when=when),
        row("blk.{i}.ssm_dt.bias", at + "dt_proj.bias", "d_inner", when=when),
        row("blk.{i}.ssm_a", at + "A_log", "d_inner, d_state", NegativeExp(), when=when),
        row("blk.{i}.ssm_d", at + "D", "d_inner", when=when),
        row("blk.{i}.ssm_out.weight", at + "out_proj.weight", "n_embd, d_inner", when=when),
        row("blk.{i}.ssm_out.bias", at + "out_proj.bias", "n_embd", when=when, optional=bias),
    )


def dual_scan(
    at: str, when: str = "", bias: Optional = "use_bias", conv_bias: Optional = "use_conv_bias=true"
) -> tuple[Row, ...]:
    """Rows of Mamba 2's mixer, which is at `at` in a layer; heads are `dt_rank`."""
    channels = "d_inner + 2 * n_group * d_state"
    column = Reshape(("dt_rank",), ("dt_rank", 1))
    return (
        row("blk.{i}.ssm_in.weight", at + "in_proj.weight", f"d_inner + {channels} + dt_rank, n_embd", when=when),
        row("blk.{i}.ssm_in.bias", at + "in_proj.bias", f"d_inner + {channels} + dt_rank", when=when, optional=bias),
        *convolution("blk.{i}.ssm_conv1d", at + "conv1d", channels, when, conv_bias),
        row("blk.{i}.ssm_dt.bias", at + "dt_bias", "dt_rank", when=when),
        row("blk.{i}.ssm_a", at + "A_log", "dt_rank, 1", NegativeExp(), column, when=when),
        row("blk.{i}.ssm_d", at + "D", "dt_rank, 1", column, when=when),
        row(
            "blk.{i}.ssm_norm.weight",
            at + "norm.weight",
            "n_group, d_inner // n_group",
            Reshape(("d_inner",), ("n_group", "d_inner // n_group")),
            when=when,
        ),
        row("blk.{i}.ssm_out.weight", at + "out_proj.weight", "n_embd, d_inner", when=when),
        row("blk.{i}.ssm_out.bias", at + "out_proj.bias", "n_embd", when=when, optional=bias),
    )

"""Options and output shared by the commands that run a model: device, dtype, figures with their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from llmconv.cli.options import PATH, device_option, size_option

__all__ = ["chunks_option", "context_option", "memory_option", "plot_option", "run_options", "with_error"]


def run_options(fn: Callable[..., Any]) -> Callable[..., Any]:
    """--device, --dtype, --activations, -q."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No progress bar, no remarks."),
        click.option(
            "--activations",
            type=click.Choice(["float", "int8"]),
            default="float",
            show_default=True,
            help="int8: round what quantized weights are multiplied with, as llama.cpp does; faster, CPU only.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "f64", "f32", "bf16", "f16"]),
            default="auto",
            show_default=True,
            help="What to compute in; quantized weights stay quantized.",
        ),
        device_option,
    ):
        fn = option(fn)
    return fn


context_option = click.option(
    "-c",
    "--context",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens in a chunk.  [default: 512, or the model's]",
)
plot_option = click.option(
    "--plot", type=PATH, metavar="FILE", help="Draw an SVG: along the text, by position, by kind of token."
)
memory_option = size_option(
    "--memory",
    "What weights and results may take; a larger model is run layer by layer.  [default: most of what is free]",
)
chunks_option = click.option("--chunks", type=click.IntRange(min=1), metavar="N", help="Stop after N chunks.")


def with_error(value: float, error: float | None = None, digits: int = 4) -> str:
    """`6.0255 ± 0.0710`."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")

"""A model card for the folder of a sweep: README.md as the Hub shows it."""

from __future__ import annotations

from collections.abc import Iterator

from llmconv.runtime.measure.sweep_rows import Sweep, SweepRow, frontier

__all__ = ["MARK", "card"]

MARK = "<!-- written by llmconv sweep -->"
"""Cards with this line are written again; others are somebody's own."""
_MEMORY = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Gigabytes that devices have."""
_AIR = 1.1
"""Besides weights and cache: buffers."""


def card(sweep: Sweep) -> str:
    """Front matter, the files with size and divergence, and which to choose for how much memory."""
    name = sweep.card.get("name") or sweep.model
    best = frontier(sweep.rows)
    lines = [
        "---",
        *(f"{key}: {sweep.card[key]}" for key in ("license", "base_model") if key in sweep.card),
        "library_name: gguf",
        "pipeline_tag: text-generation",
        "tags: [gguf, quantized]",
        "---",
        "",
        MARK,
        "",
        f"# {name}, quantized",
        "",
        "| file | type | size | bits a weight | mean KLD | perplexity / original | same top token |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(_line(row, row.type in best) for row in sorted(sweep.rows, key=lambda r: -r.size)),
        "",
        f"Measured on {sweep.text} ({sweep.tokens:,} positions, context {sweep.context}) against the original "
        f"({sweep.size / 1e6:,.1f} MB, perplexity {sweep.ppl:.4f} ± {sweep.ppl_stderr:.4f}). KLD: how far the next-"
        "token distribution is from the original's, in nats; 0: the same. Bold: no other file is as small and as near.",
        "",
        "## Which file",
        "",
        *_choices(sweep),
        "",
        "## How it was made",
        "",
        *(f"- {key}: {value}" for key, value in sweep.about.items()),
        *(f"- `{row.file}`: sha256 `{row.sha256}`" for row in sweep.rows if row.sha256),
        "",
        "Runs in llama.cpp and whatever is built on it: `llama-cli -m FILE`.",
        "",
    ]
    return "\n".join(lines)


def _line(row: SweepRow, best: bool) -> str:
    bold = "**" if best else ""
    cells = [
        f"`{row.file}`" if row.file else "",
        f"{bold}{row.type}{bold}",
        f"{row.size / 1e6:,.1f} MB",
        f"{row.bits_per_weight:.2f}",
        f"{row.mean_kld:.5f} ± {row.mean_kld_stderr:.5f}",
        f"{row.ppl_ratio:.4f} ± {row.ppl_ratio_stderr:.4f}",
        f"{row.top1_agreement:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def _choices(sweep: Sweep) -> Iterator[str]:
    """For every usual size of memory the nearest file that fits it, where a larger one has another answer."""
    with_cache = f" and {sweep.kv_context:,} tokens" if sweep.kv_cache else ""
    rows = [row for row in sweep.rows if row.type in frontier(sweep.rows)]
    yield f"The one nearest to the original that fits the memory, with weights{with_cache} and a tenth for buffers:"
    yield ""
    yield "| memory | file | needs |"
    yield "|---|---|---:|"
    last = ""
    least = min((need(sweep, row) for row in rows), default=0.0)
    sizes = [s * 1e9 for s in _MEMORY if s * 1e9 >= least] or [least]
    for memory in sizes:
        fitting = [row for row in rows if need(sweep, row) <= memory]
        chosen = min(fitting, key=lambda r: r.mean_kld)
        if chosen.type != last:
            yield f"| {memory / 1e9:g} GB | {chosen.type} | {need(sweep, chosen) / 1e6:,.0f} MB |"
        last = chosen.type


def need(sweep: Sweep, row: SweepRow) -> float:
    """Bytes that running it takes."""
    return (row.size + sweep.kv_cache) * _AIR

"""What a sweep found, for people: Markdown, a PNG plot and a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
from typing import Any, BinaryIO

from llmconv.errors import MissingExtra
from llmconv.runtime.measure.sweep_rows import Sweep, SweepRow, frontier

__all__ = ["frontier", "html_page", "markdown", "need_matplotlib", "plot"]

# Heading, the row's attribute, how it is printed.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("type", "type", "s"),
    ("size, bytes", "size", ",d"),
    ("bits per weight", "bits_per_weight", ".3f"),
    ("PPL", "ppl", ".4f"),
    ("± ", "ppl_stderr", ".4f"),
    ("PPL / original", "ppl_ratio", ".5f"),
    ("mean KLD", "mean_kld", ".6f"),
    ("± ", "mean_kld_stderr", ".6f"),
    ("max KLD", "max_kld", ".4f"),
    ("same top token", "top1_agreement", ".2%"),
    ("quantize, s", "quantize_seconds", ".2f"),
    ("evaluate, s", "evaluate_seconds", ".2f"),
    ("frontier", "frontier", ""),
)


def _cells(row: SweepRow, best: set[str]) -> list[str]:
    cells = []
    for _, attribute, form in COLUMNS:
        value: Any = ("yes" if row.type in best else "") if attribute == "frontier" else getattr(row, attribute)
        cells.append(format(value, form))
    return cells


def markdown(sweep: Sweep) -> str:
    """The table as Markdown, with what was measured on what."""
    best = frontier(sweep.rows)
    lines = [
        f"# {sweep.model}: quantized and evaluated",
        "",
        f"Text: {sweep.text}, context {sweep.context}, {sweep.tokens:,} positions scored. Original: perplexity "
        f"{sweep.ppl:.4f} ± {sweep.ppl_stderr:.4f}, {sweep.size:,} bytes. KLD: Kullback-Leibler divergence from the "
        "original's next-token distribution, in nats.",
        "",
        "| " + " | ".join(head for head, _, _ in COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *("| " + " | ".join(_cells(row, best)) + " |" for row in sweep.rows),
        "",
        "The frontier holds the types that no other beats in both size and KLD.",
        "",
    ]
    return "\n".join(lines)


def need_matplotlib() -> None:
    """`UsageError` where a plot could not be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtra("a plot (--no-plot leaves it out)", "matplotlib", "plot") from None


def plot(sweep: Sweep, out: BinaryIO) -> None:
    """KLD and perplexity against size, the frontier marked, as a PNG into `out`.  `UsageError` without matplotlib."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best = frontier(sweep.rows)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # headless
    left, right = figure.subplots(1, 2)
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if sweep.size >= u)
    edge = sorted((r for r in sweep.rows if r.type in best), key=lambda r: r.size)
    left.plot([r.size / unit for r in edge], [max(r.mean_kld, 1e-9) for r in edge], "-", color="tab:red", alpha=0.6)
    for row in sweep.rows:
        color = "tab:red" if row.type in best else "tab:blue"
        for axis, y in ((left, max(row.mean_kld, 1e-9)), (right, row.ppl)):
            axis.plot(row.size / unit, y, "o", color=color)
            axis.annotate(row.type, (row.size / unit, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    right.axhline(sweep.ppl, linestyle="--", color="gray", linewidth=1)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    right.annotate("original", (0.02, sweep.ppl), xytext=(0, 3), fontsize=8, color="gray", **place)
    left.set(
        yscale="log", xlabel=f"size, {name}", ylabel="mean KL divergence, nats", title="Divergence (red: frontier)"
    )
    right.set(xlabel=f"size, {name}", ylabel="perplexity", title="Perplexity")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.margins(0.12)
    figure.suptitle(f"{sweep.model} on {sweep.text}")
    figure.savefig(out, format="png", dpi=130, metadata={"Software": None})


_STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{font:14px/1.5 system-ui,sans-serif;max-width:92rem;margin:2rem auto;padding:0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .45rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid}th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}tr.best td:first-child{font-weight:700}
img{max-width:100%;height:auto}
"""

_SCRIPT = """
const body=document.querySelector("tbody");
document.querySelectorAll("th button").forEach((button,i)=>button.addEventListener("click",()=>{
  const head=button.parentElement,up=head.getAttribute("aria-sort")!=="ascending";
  document.querySelectorAll("th").forEach(h=>h.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort",up?"ascending":"descending");
  const key=row=>row.cells[i].dataset.v;
  [...body.rows].sort((a,b)=>{
    const x=key(a),y=key(b),n=Number(x)-Number(y);
    return (Number.isNaN(n)?x.localeCompare(y):n)*(up?1:-1);
  }).forEach(row=>body.append(row));
}));
"""


def html_page(sweep: Sweep, image: bytes | None) -> str:
    """One HTML file with everything in it: the sortable table, the plots, the figures as JSON.  Asks no network."""
    best = frontier(sweep.rows)
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(head)}</button></th>' for head, _, _ in COLUMNS
    )
    rows = []
    for row in sweep.rows:
        cells = ""
        for (_, attribute, _), text in zip(COLUMNS, _cells(row, best), strict=True):
            value = text if attribute in ("type", "frontier") else repr(float(getattr(row, attribute)))
            cells += f'<td data-v="{html.escape(value)}">{html.escape(text)}</td>'
        rows.append(f'<tr class="{"best" if row.type in best else ""}">{cells}</tr>')
    picture = ""
    if image is not None:
        data = base64.b64encode(image).decode()
        picture = f'<img alt="KL divergence and perplexity against size" src="data:image/png;base64,{data}">'
    title = html.escape(f"{sweep.model}: quantized and evaluated")
    intro = html.escape(
        f"Text {sweep.text}, context {sweep.context}, {sweep.tokens:,} positions scored. Original: perplexity "
        f"{sweep.ppl:.4f} ± {sweep.ppl_stderr:.4f}, {sweep.size:,} bytes. KLD is the Kullback-Leibler divergence from "
        "the original's next-token distribution, in nats. Bold types are on the frontier: no other is as small "
        "with less divergence. Click a heading to sort."
    )
    figures = json.dumps(sweep.as_dict()).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{intro}</p>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'{picture}<script type="application/json" id="figures">{figures}</script>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )

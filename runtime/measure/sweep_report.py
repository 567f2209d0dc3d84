"""What a sweep found, for people: Markdown, a plot and a self-contained HTML page."""

from __future__ import annotations

import html
import json

from llmconv.runtime.measure.charts import Panel, Point, svg
from llmconv.runtime.measure.sweep_rows import Sweep, SweepRow, frontier

__all__ = ["frontier", "html_page", "markdown", "plot"]

# Heading, the row's attribute, how it is printed, the attribute of its error.
COLUMNS: tuple[tuple[str, str, str, str], ...] = (
    ("type", "type", "s", ""),
    ("MB", "size", ",.2f", ""),
    ("bits a weight", "bits_per_weight", ".3f", ""),
    ("perplexity", "ppl", ".4f", "ppl_stderr"),
    ("perplexity / original", "ppl_ratio", ".5f", "ppl_ratio_stderr"),
    ("mean KLD", "mean_kld", ".6f", "mean_kld_stderr"),
    ("max KLD", "max_kld", ".4f", ""),
    ("same top token", "top1_agreement", ".2%", ""),
    ("quantize, s", "quantize_seconds", ".2f", ""),
    ("evaluate, s", "evaluate_seconds", ".2f", ""),
    ("frontier", "", "", ""),
)


def _cells(row: SweepRow, best: set[str]) -> list[str]:
    """What a row prints; of the original nothing that it was not measured in."""
    cells = []
    for head, attribute, form, error in COLUMNS:
        if row.type == "original" and head not in ("type", "MB", "bits a weight", "perplexity"):
            cells.append("")
        elif not attribute:
            cells.append("yes" if row.type in best else "")
        else:
            value = row.size / 1e6 if attribute == "size" else getattr(row, attribute)
            cells.append(format(value, form) + (f" ± {getattr(row, error):{form}}" if error else ""))
    return cells


def _intro(sweep: Sweep) -> str:
    return (
        f"Text: {sweep.text}, context {sweep.context}, {sweep.tokens:,} positions scored. KLD: Kullback-Leibler "
        "divergence from the original's next-token distribution, in nats. ±: one standard error; that of the ratio is "
        "paired, as both saw the same text. The frontier holds the types that no other beats in both size and KLD."
    )


def _foot(sweep: Sweep) -> list[tuple[str, str]]:
    """How it was made, and what of."""
    return [*sweep.about.items(), *((row.file or row.type, f"sha256 {row.sha256}") for row in sweep.rows if row.sha256)]


def markdown(sweep: Sweep) -> str:
    """The table as Markdown, with what was measured on what."""
    best = frontier(sweep.rows)
    lines = [
        f"# {sweep.model}: quantized and evaluated",
        "",
        _intro(sweep),
        "",
        "| " + " | ".join(head for head, *_ in COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *("| " + " | ".join(_cells(row, best)) + " |" for row in (sweep.original, *sweep.rows)),
        "",
        *(f"- {name}: {value}" for name, value in _foot(sweep)),
        "",
    ]
    return "\n".join(lines)


def plot(sweep: Sweep) -> str:
    """KLD and perplexity against size, with their errors and the frontier marked, as an SVG."""
    best = frontier(sweep.rows)
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if sweep.size >= u)
    rows = sorted(sweep.rows, key=lambda r: r.size)
    klds = [Point(r.size / unit, r.mean_kld, r.mean_kld_stderr, r.type, r.type in best) for r in rows]
    ppls = [Point(r.size / unit, r.ppl, r.ppl_ratio_stderr * sweep.ppl, r.type, r.type in best) for r in rows]
    size, edge = f"size, {name}", [p for p in klds if p.marked]
    panels = [
        Panel("Divergence from the original (line: frontier)", size, "mean KLD, nats", klds, edge, log=True),
        Panel("Perplexity (bars: error of the difference)", size, "perplexity", ppls, level=(sweep.ppl, "original")),
    ]
    return svg(panels, f"{sweep.model} on {sweep.text}: KL divergence and perplexity against size")


_STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{font:14px/1.5 system-ui,sans-serif;max-width:92rem;margin:2rem auto;padding:0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .45rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid}th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}tr.best td:first-child{font-weight:700}
svg{max-width:100%;height:auto}dl{font-size:.9em;overflow-wrap:anywhere}dt{font-weight:600}dd{margin:0 0 .3rem}
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


def html_page(sweep: Sweep, image: str = "") -> str:
    """One HTML file with everything in it: the sortable table, the plots (SVG), the figures as JSON.

    It asks no network.
    """
    best = frontier(sweep.rows)
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(head)}</button></th>' for head, *_ in COLUMNS)
    rows = []
    for row in (sweep.original, *sweep.rows):
        cells = ""
        for (_, attribute, form, _), text in zip(COLUMNS, _cells(row, best), strict=True):
            value = text if form in ("s", "") or not text else repr(float(getattr(row, attribute)))
            cells += f'<td data-v="{html.escape(value)}">{html.escape(text)}</td>'
        rows.append(f'<tr class="{"best" if row.type in best else ""}">{cells}</tr>')
    title = html.escape(f"{sweep.model}: quantized and evaluated")
    intro = html.escape(f"{_intro(sweep)} They are bold. Click a heading to sort.")
    figures = json.dumps(sweep.as_dict()).replace("<", "\\u003c")
    foot = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in _foot(sweep))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1><p>{intro}</p>"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'{image}<dl>{foot}</dl><script type="application/json" id="figures">{figures}</script>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )

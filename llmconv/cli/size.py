"""The command `size`: what models of given shapes take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import llmconv
from llmconv.cli import complete, envelope
from llmconv.cli.options import cache_option, human, json_option, size_option
from llmconv.cli.reports import table

if TYPE_CHECKING:
    from llmconv.convert.reports.sizing import SizeReport

__all__ = ["presets", "size"]

# Option -> the GGUF key it sets.
_SHAPE = {
    "vocab": "vocab_size",
    "dim": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "ffn": "feed_forward_length",
    "ctx": "context_length",
}
_TRAINING = ("weights", "gradients", "optimizer", "gathered", "activations", "workspace", "total")


def _sections(reports: list[SizeReport]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Titled blocks of rows, each row a label and a cell per model."""

    def rows(of: Any, text: Any) -> list[tuple[str, list[str]]]:
        maps = [of(r) for r in reports]
        labels = list(dict.fromkeys(label for m in sorted(maps, key=len, reverse=True) for label in m))
        return [(label, [text(m[label]) if label in m else "-" for m in maps]) for label in labels]

    def count(n: int) -> str:
        return f"{n:,}"

    totals: list[tuple[str, list[str]]] = [("total", [count(r.parameters) for r in reports])]
    if any(r.active != r.parameters for r in reports):
        totals.append(("active per token", [count(r.active) for r in reports]))
    totals += rows(lambda r: r.parts, count)
    totals.append(("head tied to embedding", ["yes" if r.tied else "no" for r in reports]))
    training = [(what, [human(getattr(r.training, what)) for r in reports]) for what in _TRAINING]
    first = reports[0].training
    return [
        ("Parameters", totals),
        ("One layer", [("layers", [count(r.n_layer) for r in reports]), *rows(lambda r: r.per_layer, count)]),
        ("Compute", [("FLOPs per token, forward", [f"{r.flops_per_token:.4g}" for r in reports])]),
        ("Weights in memory", rows(lambda r: r.weights, human)),
        ("Files", rows(lambda r: r.files, lambda n: f"{n:,}")),
        (
            "KV cache (F16)",
            [
                ("per token", [human(r.kv_per_token) for r in reports]),
                ("at context", [f"{human(r.kv_cache)} at {r.context:,}" for r in reports]),
                *([("states, in F32", [human(r.states) for r in reports])] if any(r.states for r in reports) else []),
            ],
        ),
        ("Inference, weights and cache", rows(lambda r: r.inference, human)),
        (f"Training with AdamW, per device of {first.devices}, batch {first.batch}", training),
    ]


def _text(reports: list[SizeReport], markdown: bool) -> str:
    names = [r.name for r in reports]
    out = []
    for title, rows in _sections(reports):
        if markdown:
            lines = [f"### {title}", "", "| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
            lines += [f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows]
            out.append("\n".join(lines))
        else:
            body = [[label, *cells] for label, cells in rows]
            out.append(table(body, [title, *names], right=set(range(1, len(names) + 1))))
    return "\n\n".join(out)


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...", shell_complete=complete.presets)
@click.option(
    "--vocab", type=click.IntRange(min=1), metavar="N", help="Words in the vocabulary of a shape given by hand."
)
@click.option("--dim", type=click.IntRange(min=1), metavar="N", help="Its width.")
@click.option("--layers", type=click.IntRange(min=0), metavar="N", help="Its layers.")
@click.option("--heads", type=click.IntRange(min=1), metavar="N", help="Its attention heads.")
@click.option(
    "--kv-heads", type=click.IntRange(min=1), metavar="N", help="Its key/value heads (default: as many as heads)."
)
@click.option("--ffn", type=click.IntRange(min=1), metavar="N", help="Its feed-forward width (default: 4 x dim).")
@click.option(
    "--ctx", type=click.IntRange(min=1), metavar="N", default=1024, show_default=True, help="Its longest context."
)
@click.option("--arch", default="gpt2", show_default=True, help="Its architecture: gpt2, llama, simple-llm, …")
@click.option("--tied/--untied", default=True, help="Whether its head is its embedding.  [default: tied]")
@click.option(
    "-c", "--context", type=click.IntRange(min=1), metavar="N", help="Context for the KV cache and attention's FLOPs."
)
@click.option(
    "--batch", type=click.IntRange(min=1), metavar="N", default=1, show_default=True, help="Batch of a training step."
)
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    metavar="N",
    help="Devices that share training.  [default: 1]",
)
@click.option("--train", is_flag=True, help="Plan instead the training of TARGET, sharded over 1 to 512 devices, or N.")
@size_option("--streaming", "Plan instead how TARGET is run layer by layer within so much memory.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    metavar="N",
    default=100_000,
    show_default=True,
    help="Of a text that is run so.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list for several targets.")
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@cache_option
def size(
    targets: tuple[str, ...],
    arch: str,
    tied: bool,
    context: int | None,
    batch: int,
    devices: int | None,
    train: bool,
    streaming: int | None,
    tokens: int,
    as_json: bool,
    markdown: bool,
    **shape: int | None,
) -> None:
    """What models take: parameters by part, FLOPs, memory and file size in every type, KV cache, training.

    TARGET is a checkpoint of any format, a config.json, or a preset (gpt2-small, llama2-7b, llama3.1-70b, …);
    several are compared side by side.  Or give a shape with --vocab, --dim, --layers and --heads.  JSON sizes are
    estimates at the bytes per number measured on a real file.  safetensors (model.safetensors of a folder) and GGUF
    sizes are exactly those that convert and quantize would write; a shape alone is taken without a tokenizer.

    \b
    Examples:
      llmconv size model.json
      llmconv size simple-36k gpt2-small llama2-7b gpt3-175b --markdown
      llmconv size --vocab 50000 --dim 768 --layers 12 --heads 12 --ffn 3072
      llmconv size llama2-7b --context 4096 --devices 8 --json
      llmconv size llama3.1-70b --streaming 6G --tokens 300000
      llmconv size llama3.1-70b --train --devices 64 --context 4096
    """
    if streaming is not None:
        _streaming(targets, streaming, {"tokens": tokens, "context": context or 512}, as_json)
        return
    if train:
        _train(targets, {"context": context or 0, "batch": batch}, [devices] if devices else [1, 8, 64, 512], as_json)
        return
    options: dict[str, Any] = {"context": context or 0, "batch": batch, "devices": devices or 1}
    reports = [llmconv.size(target, **options) for target in targets]
    wanted = ("vocab", "dim", "layers", "heads")
    given = [name for name in wanted if shape[name] is not None]
    if given and len(given) < len(wanted):
        missing = ", ".join(f"--{name}" for name in wanted if name not in given)
        raise llmconv.UsageError(f"a shape by hand also needs {missing}")
    if given:
        keys = {_SHAPE[name]: value for name, value in shape.items() if value is not None}
        keys.setdefault("feed_forward_length", 4 * keys["embedding_length"])
        reports.append(llmconv.shaped(arch, tied=tied, **keys, **options))
    if not reports:
        raise llmconv.UsageError(
            "nothing to size; name a checkpoint, a config.json or a preset, or give --vocab, --dim, …"
        )
    if as_json:
        found = [r.as_dict() for r in reports]
        envelope.emit(found[0] if len(found) == 1 else found)
    else:
        click.echo(_text(reports, markdown))


def _train(targets: tuple[str, ...], options: dict[str, int], devices: list[int], as_json: bool) -> None:
    """What training each takes on so many devices under FSDP2, and the command of it."""
    if not targets:
        raise llmconv.UsageError("nothing to plan for; name a checkpoint, a config.json or a preset")
    found = []
    for target in targets:
        for n in devices:
            plan = llmconv.training_memory(target, devices=n, **options)
            command = _command(target, plan)
            found.append({"name": target, **plan.as_dict(), "total": plan.total, "command": command})
    if as_json:
        envelope.emit(found[0] if len(found) == 1 else found)
        return
    for target in targets:
        own = [plan for plan in found if plan["name"] == target]
        first = own[0]
        title = f"{target}, memory per device, {first['batch']} x {first['context']:,} tokens each"
        rows = [[what, *(human(plan[what]) for plan in own)] for what in _TRAINING]
        heads = [f"{plan['devices']:,} device{'s' * (plan['devices'] > 1)}" for plan in own]
        click.echo(table(rows, [title, *heads], set(range(1, len(own) + 1))))
        click.echo("\n" + own[-1]["command"] + "\n")


def _command(target: str, plan: Any) -> str:
    """What to type, with at most eight devices a machine."""
    place = Path(target)
    model = (
        f"--from {place.parent if place.name == 'config.json' else place}" if place.exists() else f"--preset {target}"
    )
    batch = f"--batch-size {plan.devices * plan.batch} --context {plan.context}"
    own = f"-m llmconv train DATA -o RUN {model} {batch} --dtype bf16"
    if plan.devices == 1:
        return f"python {own}"
    each = max(n for n in range(1, 9) if plan.devices % n == 0)
    nodes = plan.devices // each
    many = f" --nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500" if nodes > 1 else ""
    return f"torchrun --nproc-per-node {each}{many} {own} --parallel fsdp"


def _streaming(targets: tuple[str, ...], memory: int, how: dict[str, int], as_json: bool) -> None:
    """How each is run within so much memory."""
    if not targets:
        raise llmconv.UsageError("nothing to plan for; name a checkpoint, a config.json or a preset")
    from llmconv.convert.reports.streaming import TooLittle

    try:
        plans = [llmconv.streaming(target, memory, **how) for target in targets]
    except TooLittle as error:
        raise TooLittle(error.given, error.least, "streaming") from None
    if as_json:
        found = [{"name": target, "peak": p.peak, **p.as_dict()} for target, p in zip(targets, plans, strict=True)]
        envelope.emit(found[0] if len(found) == 1 else found)
        return
    rows = [
        ("all in memory", ["yes" if p.resident else "no" for p in plans]),
        ("peak", [human(p.peak) for p in plans]),
        *((what, [human(getattr(p, what)) for p in plans]) for what in ("weights", "work", "states", "scratch")),
        ("read from the file", [human(p.read) for p in plans]),
        ("the next part read ahead", ["yes" if p.ahead else "no" for p in plans]),
        ("layers with experts one by one", [str(len(p.apart)) for p in plans]),
        ("how often those are read", [str(p.passes) for p in plans]),
        ("least memory", [human(p.smallest) if p.smallest else "-" for p in plans]),
    ]
    title = f"{how['tokens']:,} tokens within {human(memory)}"
    click.echo(table([[label, *cells] for label, cells in rows], [title, *targets], set(range(1, len(targets) + 1))))


@click.command()
@json_option
def presets(as_json: bool) -> None:
    """The model shapes that size and train know by name: their sizes, and what training them takes.

    The memory is that of AdamW with float32 weights, a sequence of the model's context (at most 4096) at a time,
    computed in 16 bits.  Models that see both ways train on pairs, not on plain text.

    \b
    Examples:
      llmconv presets
      llmconv train book.txt -o run --preset small-10m
    """
    from llmconv.convert import archs
    from llmconv.convert.tables.presets import PRESETS

    rows = []
    for preset in PRESETS.values():
        report, family = llmconv.size(preset.name), archs.by_gguf(preset.arch)
        rows.append(
            {
                "name": preset.name,
                "family": preset.arch,
                "parameters": report.parameters,
                "layers": preset.keys["block_count"],
                "dim": preset.keys["embedding_length"],
                "heads": preset.keys.get("attention.head_count"),  # none in a recurrent model
                "context": preset.keys.get("context_length"),
                "vocabulary": preset.keys["vocab_size"],
                "sees": "back" if family is None or family.decoder.get("causal", True) else "both ways",
                "training": report.training.total,
                "note": preset.note,
            }
        )
    if as_json:
        envelope.emit(rows)
        return
    texts = [
        [human(v) if k == "training" else f"{v:,}" if isinstance(v, int) else v or "-" for k, v in r.items()]
        for r in rows
    ]
    click.echo(table(texts, list(rows[0]), right=set(range(2, 8)) | {9}))

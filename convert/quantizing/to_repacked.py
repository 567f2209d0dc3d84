"""A GGUF that says exactly what a quantized source says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable

from llmconv.convert.quantizing import quantized
from llmconv.convert.quantizing.names import targets
from llmconv.convert.quantizing.outputs import inputs_of, opened_outputs, runnable, write_plans
from llmconv.convert.quantizing.plan import Recipe, make_plan
from llmconv.convert.quantizing.quantized import Quantized
from llmconv.convert.reading import Reading
from llmconv.convert.writing.options import Writing
from llmconv.convert.writing.portable import portable as without_own_keys
from llmconv.errors import about, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places.names import place
from llmconv.formats.sharing.team import current
from llmconv.formats.tensor import BlockClass
from llmconv.formats.writing.stream import threads
from llmconv.formats.writing.target import Told
from llmconv.quant.filetypes import COPY, REPACK
from llmconv.show import log_written

__all__ = ["to_repacked"]

StrPath = str | os.PathLike[str]


def to_repacked(
    src: StrPath | Checkpoint,
    dst: StrPath | None,
    reading: Reading,
    writing: Writing,
    fallback: BlockClass | None,
    round_sums: bool,
) -> Quantized:
    """A GGUF that says what the source says; nothing is left where it doesn't."""
    from llmconv.convert.quantizing.proving.written import PROOF, Proof, in_bits, of_gguf
    from llmconv.convert.quantizing.repack import fallen_back, pair_of, repacked

    source = src.source if isinstance(src, Checkpoint) else place(src)
    opened = reading.open(src)
    with about(source):
        fold = not writing.provenance  # which certifies the weights as they are
        found = repacked(opened, lambda c: runnable(reading.translated(c, "gguf"), c), round_sums, fold)
        checkpoint = found.checkpoint.but(*found.notes)
        if writing.portable:
            checkpoint = without_own_keys(checkpoint)
        if writing.provenance:
            rounding = "none" if fallback is None else f"to {fallback.name} where no type says a layer exactly"
            rounding = "sums of zero points to float16" if found.rounded and fallback is None else rounding
            record = _repack_record(reading, opened, rounding, PROOF if fallback is None else "", writing)
            checkpoint = checkpoint.but(metadata=checkpoint.metadata | record)
        exact = checkpoint.tensors
        if fallback is not None:
            checkpoint = fallen_back(checkpoint, fallback)
        path = targets(source, dst, [REPACK])[0]
        plan = make_plan(checkpoint, COPY, path, Recipe())
    result = quantized.of_plans(source, checkpoint, [dataclasses.replace(plan, file_type=REPACK)], 0.0)
    if writing.dry_run:
        return result
    meter = writing.meter("quantize", sum(t.source.nbytes for t in plan.tensors))
    with opened_outputs([plan], inputs_of(opened, checkpoint), "", writing) as outputs:
        kept = [t for t in plan.tensors if t.source.type is exact[t.source.name].type and t.source.name in found.said]
        proof = Proof()

        def proving() -> Callable[[str], Told | None]:
            there = of_gguf(outputs[0], plan.tensors)
            for tensor in kept:
                name = tensor.source.name
                proof.add(name, pair_of(there[tensor.name].renamed(name), found))
            return proof.of

        write_plans([plan], outputs, at(source) if source else "", writing, meter, proving)
        if current() is None:  # of several processes each compares what it has written itself
            proof.rest(threads(writing.jobs), lambda nbytes: writing.meter("verify", nbytes))
        proof.require()
    compared, total = sum(t.source.n_elements for t in kept), checkpoint.n_elements
    rounded = f", {total - compared:,} others rounded to {fallback.name} or beside them" if fallback else ""
    codes = (re.search(r"\d", t.source.type.name) for t in kept if not t.source.type.is_plain())
    said = f"{in_bits(int(n[0]) for n in codes if n)}{PROOF} ({compared:,} compared{rounded})"
    made = dataclasses.replace(result.output, proof=said)
    log_written(made.paths, Counter(t.type for t in made.tensors), [*result.notes, *made.warnings])
    return dataclasses.replace(result, outputs=(made,), written=True)


def _repack_record(reading: Reading, opened: Checkpoint, rounding: str, proof: str, writing: Writing) -> dict[str, str]:
    """The certificate of a repacking; the source is read once for it, as the floats it stands for.

    proof: what is true of any file that is there, as none is left where it isn't.
    """
    from llmconv.convert.reports import provenance as certificates

    canonical = Checkpoint() if writing.dry_run else reading.translated(reading.floats(opened), "gguf")
    certified = Checkpoint()
    certificates.certify(certified, canonical, opened, rounding)
    record = json.loads(certified.metadata[certificates.KEY]) | {"proof": proof}
    return {certificates.KEY: json.dumps(record, ensure_ascii=False)}

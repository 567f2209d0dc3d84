"""Texts as vectors, and pairs of texts as scores: `embed(model, texts)`.

The steps are sentence-transformers': a prompt before the text, the model, pooling, dense layers, length 1; and those of
its cross-encoders: a pair in one row of tokens, a classifier over the first token, the logistic function for a single
label.  What they are for a model stands in its files (modules.json and what it names), which a GGUF of ours keeps, and
in GGUF's keys; where nothing does, pooling is the mean, as it is there.
Sources: sbert.net's documentation of modules and cross-encoders; llama.h's `llama_pooling_type`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmconv import formats
from llmconv.convert.translate import translate
from llmconv.convert.writing import tasks
from llmconv.errors import Unsupported, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.progress import Meter, Progress
from llmconv.runtime.checks import check_finite
from llmconv.runtime.embedding.embed_files import Said
from llmconv.runtime.embedding.embed_rows import Rows
from llmconv.runtime.layers.mlp import activation
from llmconv.runtime.measure.chunks import Running, device_errors
from llmconv.runtime.model import Model
from llmconv.runtime.streamed.memory import Memory
from llmconv.runtime.streamed.passing import Passed

__all__ = ["embed"]

_BATCH = 32


def embed(
    model: str | os.PathLike[str] | Checkpoint | Model,
    texts: Sequence[str] | Sequence[tuple[str, str]],
    *,
    prompt: str | None = None,
    task: str | None = None,
    pooling: str = "auto",
    normalize: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: Memory = None,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """The vectors of texts, (n, dim) float32; or what a reranker or classifier says of pairs or texts, (n, labels).

    model: a file or folder of an embedding model or a reranker, or a loaded `Model`.
    texts: texts, or for rerankers pairs (query, text); each is cut to what the model takes.
    prompt: the name of one of the model's prompts, or a text to put before each of them; None: the model's usual one.
    task: of a model that has an adapter for each of several (Jina 3): the name of one, "retrieval.query"; None: none is
        used.  With `prompt` None, what the model puts before texts of that task is.
    pooling: "auto" (what the model's files say, else the mean), "mean", "cls", "last" or "max".
    normalize: vectors have length 1, and the single number of a reranker goes through the logistic function unless its
        own files say otherwise, those of yes and no (Qwen3's rerankers) through softmax; False gives them as they are.
    memory: as `perplexity` takes it.

    `UsageError` for texts that do not suit the model, `Unsupported` for modules that are not known here.
    """
    if not texts or isinstance(texts, str):
        raise UsageError("there are no texts; give a list of one or more")
    if task is not None:
        model, settings = _for_task(model, task)
        prompt = tasks.instruction(settings, task) if prompt is None else prompt
    running = Running(device, dtype, "float", memory).model(model)
    if not isinstance(running, Model):
        raise Unsupported(f"{running.where}: a recurrent model makes no vectors of texts")
    said = Said(running, pooling)
    rows = Rows(running, said).rows(texts, said.prompt(prompt))
    by_length: dict[int, list[int]] = defaultdict(list)
    for n, (ids, _) in enumerate(rows):
        by_length[len(ids)].append(n)
    out: dict[int, Tensor] = {}
    meter = Meter(progress, "embed", len(rows), "texts")
    with torch.inference_mode(), device_errors(running.device):
        batches = [same[start : start + _BATCH] for same in by_length.values() for start in range(0, len(same), _BATCH)]
        tokens, kinds = (
            [torch.tensor([rows[n][k] for n in b], device=running.device) for b in batches] for k in (0, 1)
        )
        with Passed(running, tokens, progress, [of if of.any() else None for of in kinds]) as passed:
            for i, batch in enumerate(batches):  # of one length: nothing is padded
                hidden, ranks = passed.hidden(i), running.cls is not None
                found = _scores(running, said, hidden, tokens[i]) if ranks else _vectors(running, said, hidden)
                found = found if found.dtype == torch.float64 else found.float()
                found = _finished(running, said, found) if normalize else found
                out.update(zip(batch, found.cpu(), strict=True))
                meter.reach(len(out))
    vectors = torch.stack([out[n] for n in range(len(rows))])
    check_finite(vectors, running, lambda n: f"text {n + 1}", what="the numbers")
    return vectors.numpy().astype(np.float32)


def _for_task(model: str | os.PathLike[str] | Checkpoint | Model, task: str) -> tuple[Checkpoint, Mapping[str, object]]:
    """A model with the adapter of a task in its weights; and its config.json."""
    if isinstance(model, Model):
        raise UsageError(f"{model.where}: is loaded without the adapter of a task; give its file with task=")
    checkpoint = model if isinstance(model, Checkpoint) else formats.open(model)
    return tasks.merged(translate(checkpoint, "gguf"), task)


def _pooled(kind: str, hidden: Tensor) -> Tensor:
    """(B, T, dim) -> (B, dim)."""
    match kind:
        case "cls":
            return hidden[:, 0]
        case "last":
            return hidden[:, -1]
        case "max":
            return hidden.amax(1)
    return hidden.mean(1)


def _vectors(model: Model, said: Said, hidden: Tensor) -> Tensor:
    x = _pooled(said.pooling, hidden)
    x = x if x.dtype == torch.float64 else x.float()
    for weight, bias, kind in said.dense:
        made = torch.nn.functional.linear(x, weight.to(x), None if bias is None else bias.to(x))
        x = activation(kind)(made)
    for layer in (model.dense_2, model.dense_3):
        x = x if layer is None else layer(x)
    return x


def _scores(model: Model, said: Said, hidden: Tensor, tokens: Tensor) -> Tensor:
    """What a classifier says: (B, labels)."""
    late, head = said.classifier == "late", model.cls  # pooled behind it, not before
    if said.classifier == "last":
        hidden = _read(said, hidden, tokens)
    x = hidden if late else _pooled(said.classifier, hidden)
    if hasattr(head, "weight"):
        x = activation(_inner(model))(head(x))
    if hasattr(head, "norm"):
        x = head.norm(x)
    out: Tensor = head.output(x) if hasattr(head, "output") else x
    return out.mean(1) if late else out


def _read(said: Said, hidden: Tensor, tokens: Tensor) -> Tensor:
    """The hidden state of each row's last token that is none of padding, as transformers finds it: (B, 1, dim)."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = (places * (tokens != said.padding)).argmax(1)
    return hidden[torch.arange(len(tokens), device=tokens.device), last][:, None]


def _inner(model: Model) -> str:
    """The activation behind the layer in front of a classifier."""
    if model.decoder.arch in ("modern-bert", "eurobert"):
        return "gelu"
    distils = model.decoder.arch == "bert" and model.token_types is None  # whose is another than the others'
    return "relu" if distils else "tanh"


def _finished(model: Model, said: Said, found: Tensor) -> Tensor:
    if model.cls is None:
        return torch.nn.functional.normalize(found, dim=-1)
    if said.of_words:
        return found.softmax(-1)
    return found.sigmoid() if said.logistic else found

"""What a slow tokenizer's class does, for folders with vocab.json and merges.txt and no tokenizer.json that says it.

The classes are those of transformers' `tokenization_*.py`; a folder that names none has that of its model type, as
transformers' `TOKENIZER_MAPPING` gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.convert.vocab.read.folder import Folder
from llmconv.errors import Unsupported, cut

__all__ = ["Slow", "find"]


@dataclass(frozen=True)
class Slow:
    """A byte-level BPE class.

    pre: the pre-tokenizer's name.   nfc: the text is normalised.   leading_space: one is put before the text, unless
    the folder says otherwise.   around: what is put before and after a text, (bos, eos), unless it says otherwise.
    """

    pre: str = "gpt-2"
    nfc: bool = False
    leading_space: bool = False
    around: tuple[str | None, str | None] = (None, None)


_GPT2, _QWEN2, _ROBERTA = Slow(), Slow("qwen2", nfc=True), Slow(around=("<s>", "</s>"))
_CLASSES = {
    "GPT2": _GPT2,
    "CodeGen": _GPT2,
    "Whisper": _GPT2,
    "Qwen2": _QWEN2,
    "Qwen3_5": Slow("qwen35", nfc=True),
    "Cohere": Slow("command-r", nfc=True),
    "GPTNeoX": Slow("olmo", nfc=True),
    "Roberta": _ROBERTA,
    "Bart": _ROBERTA,
    "LED": _ROBERTA,
    "Longformer": _ROBERTA,
    "Mvp": _ROBERTA,
    "Blenderbot": Slow(leading_space=True),
    "Deberta": Slow(around=("[CLS]", "[SEP]")),
}
# Classes whose merges are over characters, with a mark at the end (or the beginning) of words.
_OF_CHARACTERS = (
    "BioGpt",
    "Bertweet",
    "BlenderbotSmall",
    "CLIP",
    "CTRL",
    "Clvp",
    "FSMT",
    "Flaubert",
    "Herbert",
    "Luke",
    "MarkupLM",
    "OpenAIGPT",
    "Phobert",
    "XLM",
)
_MODEL_TYPES = {
    "GPT2": ("gpt2", "gpt_neo", "gptj", "gpt_bigcode", "opt", "phi", "codegen", "dbrx", "emu3", "jais2", "starcoder2"),
    "Qwen3_5": ("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp"),
    "Qwen2": ("qwen2", "qwen3", "internvl", "ovis2", "hunyuan_vl"),
    "Cohere": ("cohere", "cohere2", "aya_vision"),
    "GPTNeoX": ("gpt_neox",),
    "Whisper": ("whisper",),
    "Roberta": ("roberta", "bart", "longformer", "mega", "ibert", "camembert_bpe", "data2vec-text", "mvp", "led"),
    "Blenderbot": ("blenderbot",),
    "Deberta": ("deberta",),
    "CLIP": ("clip", "clipseg"),
    "OpenAIGPT": ("openai-gpt",),
}


def find(folder: Folder) -> tuple[Slow, str | None]:
    """The class of a folder's tokenizer, and a note where it isn't known and GPT-2's is taken.

    `Unsupported` for one whose merges aren't over bytes: GGUF has no such tokenizer.
    """
    stated = folder.json("tokenizer_config.json").get("tokenizer_class") or folder.config.get("tokenizer_class")
    kind = folder.setting("model_type")
    if isinstance(stated, str):
        name = stated.removesuffix("Fast").removesuffix("Tokenizer")
    else:
        name = _of_model_type(kind) if isinstance(kind, str) else "GPT2"
    if name in _OF_CHARACTERS:
        raise Unsupported(
            f"vocab.json: a {name}Tokenizer merges characters and marks the ends of words, not bytes; no GGUF "
            "tokenizer does that, and GPT-2's would give wrong ids"
        )
    if name in _CLASSES or folder.pre:
        return _CLASSES.get(name, _GPT2), None
    what = cut(stated) if isinstance(stated, str) else f"of model type {cut(kind)}"
    return _GPT2, (
        f"the tokenizer class {what} is not known here and there is no tokenizer.json: text is split as GPT-2 splits "
        "it; give the right pre-tokenizer with --pre NAME"
    )


def _of_model_type(kind: str) -> str:
    for name, kinds in _MODEL_TYPES.items():
        if kind in kinds:
            return name
    return "Qwen2" if kind.startswith(("qwen2", "qwen3", "colqwen2")) else ""

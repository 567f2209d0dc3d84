"""A vocabulary without weights: a folder with a tokenizer to a GGUF, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers_trained import PROBE, trained

import llmconv
from llmconv import formats
from llmconv.convert import vocab
from llmconv.errors import UsageError

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 600, "rms_norm_eps": 1e-5}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "additional_chat_templates").mkdir(parents=True)
    (made / "tokenizer.json").write_text(trained("bpe").to_str())
    (made / "chat_template.jinja").write_text("T")
    (made / "additional_chat_templates/rag.jinja").write_text("R")
    return made


@pytest.mark.parametrize("known", [True, False])
def test_folder_to_gguf_and_back(folder: Path, tmp_path: Path, known: bool) -> None:
    if known:
        (folder / "config.json").write_text(json.dumps(CONFIG))
    before = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    result = llmconv.convert_file(folder, tmp_path / "vocab.gguf", vocab_only=True)
    assert result.n_tensors == 0 and len(result.notes) == (0 if known else 1)
    checkpoint = formats.open(tmp_path / "vocab.gguf")
    assert checkpoint.metadata["general.architecture"] == "llama" and not checkpoint.tensors
    assert ("llama.block_count" in checkpoint.metadata) == known
    assert vocab.tokenizer(vocab.load(tmp_path / "vocab.gguf")).encode(PROBE) == vocab.tokenizer(
        vocab.load(folder)
    ).encode(PROBE)
    llmconv.convert_file(tmp_path / "vocab.gguf", tmp_path / "back")
    back = tmp_path / "back"
    assert {str(p.relative_to(back)): p.read_bytes() for p in back.rglob("*") if p.is_file()} == before


def test_the_vocabulary_of_a_gguf_of_somebody_else(shared: Path, tmp_path: Path) -> None:
    source = shared / "vocabs" / "ggml-vocab-phi-3.gguf"
    llmconv.convert_file(source, tmp_path / "phi")
    assert {p.name for p in (tmp_path / "phi").iterdir()} >= {"tokenizer.json", "tokenizer.model"}
    assert not list((tmp_path / "phi").glob("*.safetensors"))
    text = "Hello <|user|> 3 ½\n\n  world"
    there, back = vocab.load(source), vocab.load(tmp_path / "phi")
    assert vocab.tokenizer(there).encode(text) == vocab.tokenizer(back).encode(text)
    llmconv.convert_file(source, tmp_path / "copy.gguf", vocab_only=True)
    keys, wanted = formats.open(tmp_path / "copy.gguf").metadata, formats.open(source).metadata
    assert set(wanted) <= set(keys)


def test_what_holds_no_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(llmconv.LlmconvError):
        llmconv.convert_file(tmp_path / "empty", tmp_path / "out.gguf", vocab_only=True)
    assert not (tmp_path / "out.gguf").exists()


def test_only_a_gguf_or_a_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"goes into a \.gguf file or a folder"):
        llmconv.convert_file(folder, tmp_path / "out.safetensors", vocab_only=True)


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmconv.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["convert", str(folder), str(tmp_path / "out.gguf"), "--vocab-only"])
    assert ended.value.code in (0, None) and "out.gguf" in capsys.readouterr().out

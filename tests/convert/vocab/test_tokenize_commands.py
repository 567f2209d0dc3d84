"""`llmconv tokenize` and `llmconv detokenize`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers_trained import trained

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    code = "import sys; from llmconv.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, input=stdin)
    return done.returncode, done.stdout, done.stderr


def test_commands(tmp_path: Path) -> None:
    original = trained("bpe")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(original.to_str())
    texts = ["", "a man", " in  possession\n", "é🙂 <s>"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code, out, err = run("tokenize", str(folder), "--json-texts", str(tmp_path / "texts.json"))
    original.encode_special_tokens = True
    wanted = [original.encode(text, add_special_tokens=False).ids for text in texts]
    assert (code, err) == (0, "") and json.loads(out) == wanted
    code, out, err = run("tokenize", str(folder / "tokenizer.json"), "a man", "--ids", "--add-special")
    assert (code, err) == (0, "") and out.split() == ["0", *map(str, wanted[1])]
    assert run("tokenize", str(folder), stdin="a man")[1].split() == run("tokenize", str(folder), "a man")[1].split()
    assert run("detokenize", str(folder), *map(str, wanted[3]))[1] == "é🙂 <s>\n"
    (tmp_path / "bad.json").write_text('["a", 3]')
    code, out, err = run("tokenize", str(folder), "--json-texts", str(tmp_path / "bad.json"))
    assert (code, out) == (1, "") and err.count("\n") == 1 and "bad.json" in err
    code, out, err = run("detokenize", str(folder), "999999")
    assert (code, out) == (2, "") and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    code, out, err = run("tokenize", str(tmp_path / "empty"), "x")
    assert code != 0 and out == "" and err.count("\n") == 1

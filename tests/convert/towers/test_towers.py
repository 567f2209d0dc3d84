"""Every tower's table: a folder's tensors to an mmproj file and back, bit for bit; two halves and one folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tower_folders
from failing import failing_at
from good_models import CONFIG, tensors, write_hf

import llmconv
from llmconv.convert import towers
from llmconv.convert.tables.tower import Tower
from llmconv.convert.towers import translate, which
from llmconv.errors import BadFile, OutputError, UnknownTensor, Unsupported, UsageError, WrongShape
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output

TOWERS = [tower for tower in towers.all() if not tower.unsaid]  # by a config.json; test_pocket_tts has the other
NAMES = [tower.classes[0] for tower in TOWERS]
GEMMA = next(tower for tower in towers.all() if tower.projector == "gemma3")


def same(a: Checkpoint, b: Checkpoint) -> None:
    assert sorted(a.tensors) == sorted(b.tensors)
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        assert np.array_equal(tensor.blocks(), other.blocks()), name


@pytest.mark.parametrize("tower", TOWERS, ids=NAMES)
def test_a_tower_comes_back_bit_for_bit(tower: Tower) -> None:
    folder = tower_folders.tower_folder(tower, tower.classes[0])
    made = translate.to_gguf(folder)
    assert made.metadata["general.architecture"] == "clip" and made.metadata["general.type"] == "mmproj"
    for cls in tower.classes:
        assert towers.by_config(tower_folders.config_of(tower, cls)) is tower
    back = translate.from_gguf(made)
    same(folder, back)
    assert back.files["config.json"] == folder.files["config.json"]


@pytest.mark.parametrize("tower", TOWERS, ids=NAMES)
def test_somebody_elses_file_gives_the_same_tensors(tower: Tower) -> None:
    folder = tower_folders.tower_folder(tower, tower.classes[0], "F32")
    made = translate.to_gguf(folder)
    foreign = made.but(metadata={k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")})
    back = translate.from_gguf(foreign)
    if towers.by_gguf(foreign.metadata, foreign.tensors) is tower:  # else the folder is another class's of its kind
        assert {tower.spelled(name) for name in back.tensors} == set(folder.tensors)
    again = translate.to_gguf(back.but(files={**back.files, "config.json": _with_text(back)}))
    keys = {k: v for k, v in again.metadata.items() if k.startswith("clip.")}
    for key, value in keys.items():
        assert np.array_equal(np.asarray(foreign.metadata[key]), np.asarray(value)), key
    same(made, again)


@pytest.mark.parametrize("tower", TOWERS, ids=NAMES)
def test_leading_ones_need_not_be_there(tower: Tower) -> None:
    """ggml does not count dimensions of one at the end of its shapes, so who quantizes an mmproj file drops them."""
    folder = tower_folders.tower_folder(tower, tower.classes[0])
    made = translate.to_gguf(folder)
    shapes = {
        name: tensor.shape[next((i for i, n in enumerate(tensor.shape[:-1]) if n > 1), -1) :]
        for name, tensor in made.tensors.items()
    }
    bare = {name: tensor.reshaped(shapes[name]) if tensor.shape else tensor for name, tensor in made.tensors.items()}
    quantized = made.but(tensors=bare)
    same(folder, translate.from_gguf(quantized))
    assert llmconv.verify(made, quantized).same and llmconv.verify(quantized, made).same


def _with_text(folder: Checkpoint) -> bytes:
    config = json.loads(folder.file("config.json") or b"")
    config.get("thinker_config", config)["text_config"] = tower_folders.TEXT
    return json.dumps(config).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llmconv.save(tower_folders.multimodal(GEMMA, GEMMA.classes[0]), tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_becomes_two_files_and_comes_back(folder: Path, tmp_path: Path) -> None:
    result = llmconv.convert_file(folder, tmp_path / "m.gguf")
    assert [path.name for path in result.paths] == ["m.gguf", "mmproj-m.gguf"]
    assert result.n_tensors == len(llmconv.open(folder).tensors)
    back = llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    assert any("mmproj-m.gguf" in note for note in back.notes)
    same(llmconv.open(folder), llmconv.open(tmp_path / "back"))
    for name in ("config.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("where", ["written", "named"])
@pytest.mark.parametrize("older", [b"", b"older"])
def test_both_files_appear_or_neither(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, older: bytes
) -> None:
    if older:
        (tmp_path / "m.gguf").write_bytes(older)
    if where == "written":
        monkeypatch.setattr(gguf_file, "write_tensors", failing_at(gguf_file.write_tensors, 1))
    else:
        monkeypatch.setattr(Output, "publish", failing_at(Output.publish, 1))
    with pytest.raises(OutputError):
        llmconv.convert_file(folder, tmp_path / "m.gguf", force=bool(older))
    assert {path.name for path in tmp_path.iterdir()} == ({"model", "m.gguf"} if older else {"model"})
    assert not older or (tmp_path / "m.gguf").read_bytes() == older
    monkeypatch.undo()
    result = llmconv.convert_file(folder, tmp_path / "m.gguf", force=bool(older))
    assert result.size == sum(path.stat().st_size for path in result.paths) and len(result.paths) == 2


def test_names_without_a_target_are_the_ecosystems(folder: Path) -> None:
    result = llmconv.convert_file(folder, to="gguf")
    assert [path.name for path in result.paths] == ["model-BF16.gguf", "mmproj-model-BF16.gguf"]


def test_either_half_alone(folder: Path, tmp_path: Path) -> None:
    tower = llmconv.convert_file(folder, tmp_path / "t.gguf", mmproj=True)
    text = llmconv.convert_file(folder, tmp_path / "x.gguf", text_only=True)
    assert [len(r.paths) for r in (tower, text)] == [1, 1]
    assert tower.n_tensors + text.n_tensors == len(llmconv.open(folder).tensors)
    assert llmconv.inspect_file(tmp_path / "t.gguf")["half"]["is"] == "tower"
    assert llmconv.inspect_file(tmp_path / "x.gguf")["half"]["partner"] == "mmproj-x.gguf"
    alone = llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "text", text_only=True)
    assert alone.n_tensors == text.n_tensors
    both = llmconv.convert_file(tmp_path / "x.gguf", tmp_path / "both", mmproj=tmp_path / "t.gguf")
    assert both.n_tensors == tower.n_tensors + text.n_tensors


def test_both_halves_of_another_program(folder: Path, tmp_path: Path) -> None:
    llmconv.convert_file(folder, tmp_path / "m.gguf", portable=True)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back", mmproj=tmp_path / "mmproj-m.gguf")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"] and config["model_type"] == "gemma3"
    assert config["text_config"]["hidden_size"] == 64 and config["vision_config"]["hidden_size"] == 32
    assert set(llmconv.open(tmp_path / "back").tensors) == set(llmconv.open(folder).tensors)


def test_reports_know_both_halves(folder: Path, tmp_path: Path) -> None:
    llmconv.convert_file(folder, tmp_path / "m.gguf")
    assert llmconv.inspect_file(folder)["half"]["is"] == "both"
    report = llmconv.size(folder)
    assert report.parts["tower"] == llmconv.open(tmp_path / "mmproj-m.gguf").n_elements
    assert report.parameters == llmconv.open(folder).n_elements
    assert report.files["mmproj F32"] > 4 * report.parts["tower"]
    changed = llmconv.open(folder)
    old = next(tensor for name, tensor in changed.tensors.items() if name.startswith("vision_tower."))
    changed.add(Tensor.from_array(old.name, np.zeros(old.shape, np.float32)).astype(old.type))
    llmconv.save(changed, tmp_path / "changed")
    assert not llmconv.verify(folder, tmp_path / "changed").same
    assert llmconv.content_hash(folder).model != llmconv.content_hash(tmp_path / "changed").model
    assert llmconv.verify(folder, tmp_path / "m.gguf").same and llmconv.verify(folder, tmp_path / "mmproj-m.gguf").same


def test_casting_keeps_what_is_never_rounded(folder: Path, tmp_path: Path) -> None:
    llmconv.convert_file(folder, tmp_path / "m.gguf", outtype="f16")
    tensors = llmconv.open(tmp_path / "mmproj-m.gguf").tensors
    kinds = {name: tensors[name].type.name for name in ("v.patch_embd.weight", "v.position_embd.weight")}
    assert set(kinds.values()) == {"F32"} and tensors["v.blk.0.ffn_up.weight"].type.name == "F16"


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    llmconv.convert_file(folder, tmp_path / "m.gguf")
    text, tower = tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf"
    for options in ({"mmproj": True, "text_only": True}, {"mmproj": tower}):
        with pytest.raises(UsageError):
            llmconv.convert_file(folder, tmp_path / "n.gguf", **options)
    for options in ({"mmproj": True}, {"mmproj": text}):
        with pytest.raises(UsageError):
            llmconv.convert_file(text, tmp_path / "n", **options)
    with pytest.raises(UsageError, match="no effect"):
        llmconv.convert_file(folder, tmp_path / "n", mmproj=True)
    with pytest.raises(Unsupported, match="no tensors of its tower"):
        llmconv.convert_file(folder, tmp_path / "n.gguf", mmproj=True, exclude=["vision_tower.*", "multi_modal*"])
    assert not (tmp_path / "n.gguf").exists() and not (tmp_path / "n").exists()


_OUTER = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
LLAVA = _OUTER | {"vision_config": {"model_type": "made_up"}, "text_config": CONFIG}
STRANGE = ("vision_tower.patch.weight", "vision_tower.layers.0.fc.bias", "multi_modal_projector.linear_1.weight")


def seeing(folder: Path, *names: str) -> Path:
    """A folder with a text model inside and tensors of these names beside it."""
    inside = {f"language_model.{name}": tensor.renamed(f"language_model.{name}") for name, tensor in tensors().items()}
    beside = {name: Tensor.from_array(name, np.ones((4, 4), np.float32)) for name in names}
    return write_hf(folder, LLAVA, None, inside | beside)


@pytest.mark.parametrize("options", [{}, {"strict": False}, {"text_only": True}])
def test_a_tower_that_nobody_knows_is_named(tmp_path: Path, options: dict[str, bool]) -> None:
    source = seeing(tmp_path / "m", *STRANGE)
    made = llmconv.convert_file(source, tmp_path / "m.gguf", **options)
    notes = [note for note in made.notes if "tower" in note]
    assert len(notes) == 1 and f"3 tensors are left out: '{STRANGE[0]}' (and 2 more)" in notes[0]
    alone = llmconv.convert_file(write_hf(tmp_path / "alone"), tmp_path / "alone.gguf")
    assert made.n_tensors == alone.n_tensors
    back = llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    assert [note for note in back.notes if "config.json speaks of 'vision_config'" in note]
    assert set(llmconv.open(tmp_path / "back").tensors) == set(llmconv.open(source).tensors) - set(STRANGE)
    made = llmconv.quantize(source, tmp_path / "q.gguf", "Q8_0")
    assert [note for note in made.notes if "3 tensors are left out" in note]


def test_what_is_no_towers_is_refused_beside_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownTensor, match="surplus"):
        llmconv.convert_file(seeing(tmp_path / "m", *STRANGE, "language_model.surplus.weight"), tmp_path / "m.gguf")
    with pytest.raises(Unsupported, match="no tower known here"):
        llmconv.convert_file(tmp_path / "m", tmp_path / "m.gguf", mmproj=True)
    with pytest.raises(UnknownTensor, match="vision_tower"):  # of a text model, by its configuration
        strange = Tensor.from_array("vision_tower.x.weight", np.ones(4, np.float32))
        write_hf(tmp_path / "t", None, None, tensors() | {strange.name: strange})
        llmconv.convert_file(tmp_path / "t", tmp_path / "t.gguf")
    with pytest.raises(UsageError, match="no tower to leave out"):
        llmconv.convert_file(write_hf(tmp_path / "u"), tmp_path / "u.gguf", text_only=True)


def test_a_known_tower_that_is_another(folder: Path, tmp_path: Path) -> None:
    """Its class is known, its tensors are not that class's: refused with a way out, or left out and said."""
    whole = llmconv.open(folder)
    gone = [name for name in whole.tensors if name.startswith("vision_tower.") and "patch_embedding" in name]
    llmconv.save(whole.but(tensors={n: t for n, t in whole.tensors.items() if n not in gone}), tmp_path / "other")
    with pytest.raises(BadFile, match="converts the text model alone"):
        llmconv.convert_file(tmp_path / "other", tmp_path / "m.gguf")
    text = llmconv.convert_file(tmp_path / "other", tmp_path / "t.gguf", text_only=True)
    made = llmconv.convert_file(tmp_path / "other", tmp_path / "m.gguf", strict=False)
    assert len(made.paths) == 1 and made.n_tensors == text.n_tensors
    assert any("the text model alone, its tower of" in note and "patch_embedding" in note for note in made.notes)


def test_a_strange_tensor_and_a_wrong_one() -> None:
    folder = tower_folders.tower_folder(GEMMA, GEMMA.classes[0])
    folder.add(Tensor.from_array("vision_tower.vision_model.surplus.weight", np.zeros((4, 4), np.float32)))
    with pytest.raises(UnknownTensor, match="surplus"):
        translate.to_gguf(folder)
    assert any("surplus" in note for note in translate.to_gguf(folder, strict=False).notes)
    folder = tower_folders.tower_folder(GEMMA, GEMMA.classes[0])
    folder.add(Tensor.from_array("vision_tower.vision_model.post_layernorm.weight", np.zeros(7, np.float32)))
    with pytest.raises(WrongShape):
        translate.to_gguf(folder)


def test_what_llama_cpp_leaves_out_is_kept() -> None:
    folder = tower_folders.tower_folder(GEMMA, GEMMA.classes[0])
    for name, shape in (("head.probe", (1, 1, 32)), ("head.mlp.fc1.weight", (300, 300))):
        values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        folder.add(Tensor.from_array("vision_tower.vision_model." + name, values))
    same(folder, translate.from_gguf(translate.to_gguf(folder)))


def _of(projector: str) -> Tower:
    return next(tower for tower in TOWERS if tower.projector == projector)


def test_positions_are_interpolated_and_come_back() -> None:
    """RADIO's table is for the largest pictures, a GGUF's for those that a folder's pictures are cut to."""
    tower = _of("nemotron_v2_vl")
    folder = tower_folders.tower_folder(tower, tower.classes[0], "F32")
    name = "vision_model.radio_model.model.patch_generator.pos_embed"
    n, width = 9, folder.tensors[name].shape[2]
    y, x = np.mgrid[:n, :n].astype(np.float32)
    values = np.stack([y + 10 * x] * width, axis=-1).reshape(1, n * n, width)
    folder.add(Tensor.from_array(name, values))
    made = translate.to_gguf(folder)
    table = made.tensors["v.position_embd.weight"].numpy().reshape(5, 5, width)
    corners = np.linspace(0, 8, 5)
    assert np.allclose(table[..., 0], corners[:, None] + 10 * corners[None, :])
    same(folder, translate.from_gguf(made))


def test_a_film_s_patches_are_one_picture_s() -> None:
    tower = _of("muse-glimmer")
    folder = tower_folders.tower_folder(tower, tower.classes[0], "F32")
    name = "model.vision_tower.patch_embedder.patch_embedding.weight"
    whole = folder.tensors[name].numpy()
    made = translate.to_gguf(folder)
    first, second = np.split(whole, 2, axis=1)
    assert np.array_equal(made.tensors["v.patch_embd.weight"].numpy().reshape(first.shape), first + second)
    foreign = made.but(metadata={k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")})
    foreign.tensors.pop(name)
    back = translate.from_gguf(foreign).tensors[name].numpy()
    assert np.array_equal(back, np.concatenate([first + second, np.zeros_like(first)], axis=1))


@pytest.mark.parametrize("cls", tower_folders.KEPT)
def test_what_published_folders_have_besides_is_kept(cls: str) -> None:
    tower = next(tower for tower in TOWERS if cls in tower.classes)
    folder = tower_folders.published(tower, cls)
    made = translate.to_gguf(folder)
    assert all(len(name) < 64 for name in made.tensors)  # as long as llama.cpp's names can be
    same(folder, translate.from_gguf(made))
    foreign = made.but(metadata={k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")})
    assert any("no key says" in note for note in translate.from_gguf(foreign).notes) == cls.startswith("Nemotron")


def test_projectors_out_of_order_are_refused() -> None:
    tower = _of("granite4_vision")
    folder = tower_folders.tower_folder(tower, tower.classes[0])
    config = json.loads(folder.file("config.json") or b"") | {"deepstack_layer_map": [[-1, 0], [-3, 2]]}
    with pytest.raises(Unsupported, match="in order"):
        translate.to_gguf(folder.but(files={**folder.files, "config.json": json.dumps(config).encode()}))


@pytest.mark.parametrize(
    ("cls", "inner"),
    [
        ("Lfm2AudioForConditionalGeneration", "lfm"),
        ("NemotronH_Nano_VL_V2", "llm_config"),
        ("Granite4VisionForConditionalGeneration", "text_config"),
    ],
)
def test_both_halves_by_their_own_keys(cls: str, inner: str, tmp_path: Path) -> None:
    """Where the text model's settings and tensors stand in a folder that another program's files become."""
    tower = next(tower for tower in TOWERS if cls in tower.classes)
    llmconv.save(tower_folders.multimodal(tower, cls), tmp_path / "model")
    llmconv.convert_file(tmp_path / "model", tmp_path / "m.gguf", portable=True)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == [cls] and config[inner]["hidden_size"] == 64
    wanted = {name for name in llmconv.open(tmp_path / "model").tensors if not name.startswith("lm_head")}
    assert wanted <= set(llmconv.open(tmp_path / "back").tensors)
    llmconv.convert_file(tmp_path / "back", tmp_path / "again.gguf", portable=True)
    same(llmconv.open(tmp_path / "m.gguf"), llmconv.open(tmp_path / "again.gguf"))
    same(llmconv.open(tmp_path / "mmproj-m.gguf"), llmconv.open(tmp_path / "mmproj-again.gguf"))
    if cls.startswith("Granite4"):
        assert config["deepstack_layer_map"] == [[3, 2], [5, 0]] and config["spatial_target_layers"] == [1, 3, 4, 5]


def test_another_models_sounds_are_read_and_told_of(tmp_path: Path) -> None:
    """Qwen3-TTS's decoder is read from the folder within, and is not written back."""
    cls, tower = "Qwen3TTSForConditionalGeneration", _of("qwen3tts_spkenc")
    llmconv.save(tower_folders.tower_folder(tower, cls, "F32"), tmp_path / "model")
    assert any("speech_tokenizer" in note for note in translate.to_gguf(llmconv.open(tmp_path / "model")).notes)
    tower_folders.put_beside(cls, tmp_path / "model", "F32")
    llmconv.convert_file(tmp_path / "model", tmp_path / "mmproj-m.gguf", mmproj=True)
    made, inner = llmconv.open(tmp_path / "mmproj-m.gguf"), llmconv.open(tmp_path / "model" / "speech_tokenizer")
    books = made.tensors["a.gen.wav.quant.rest.codebook.weight"].numpy()
    start = "decoder.quantizer.rvq_rest.vq.layers.3._codebook."
    total, usage = (inner.tensors[start + name].numpy() for name in ("embedding_sum", "cluster_usage"))
    assert books.shape == (15, 10, 8) and np.allclose(books[3], total / usage[:, None], rtol=1e-6)
    alpha = inner.tensors["decoder.decoder.5.alpha"].numpy()
    assert np.allclose(made.tensors["a.gen.wav.dac.post_snake.alpha"].numpy(), np.exp(alpha), rtol=1e-6)
    back = translate.from_gguf(made)
    assert any("speech_tokenizer" in note for note in back.notes)
    same(llmconv.open(tmp_path / "model"), back)


def test_another_models_encoder_is_read_and_told_of(tmp_path: Path) -> None:
    """MiMo hears by an encoder in the folder within; without it only its eye is converted, and all comes back."""
    cls, tower = "MiMoV2ForCausalLM", _of("mimovl")
    llmconv.save(tower_folders.published(tower, cls, "F32"), tmp_path / "model")
    alone = translate.to_gguf(llmconv.open(tmp_path / "model"))
    assert any("audio_tokenizer" in note for note in alone.notes) and "clip.audio.block_count" not in alone.metadata
    same(llmconv.open(tmp_path / "model"), translate.from_gguf(alone))
    tower_folders.put_beside(cls, tmp_path / "model", "F32")
    llmconv.convert_file(tmp_path / "model", tmp_path / "mmproj-m.gguf", mmproj=True)
    made, inner = llmconv.open(tmp_path / "mmproj-m.gguf"), llmconv.open(tmp_path / "model" / "audio_tokenizer")
    books = made.tensors["a.rvq.codebook.weight"].numpy()
    small = inner.tensors["encoder.quantizer.vq.layers.2._codebook.embed"].numpy()
    assert books.shape == (3, 10, 32) and np.array_equal(books[2, :6], small) and not books[2, 6:].any()
    assert made.metadata["clip.audio.rvq.codebook_size"].tolist() == [10, 10, 6]
    assert made.metadata["clip.audio.wa_pattern_mode"].tolist() == [0, -1, 0, -1]
    back = translate.from_gguf(made)
    assert any("audio_tokenizer" in note for note in back.notes)
    same(llmconv.open(tmp_path / "model"), back)


def test_another_models_tower_is_refused(tmp_path: Path) -> None:
    whole = tower_folders.multimodal(GEMMA, GEMMA.classes[0])
    made = translate.to_gguf(whole)
    text = which.text_half(whole)[0]
    made.metadata["clip.vision.projection_dim"] = np.uint32(128)
    with pytest.raises((BadFile, WrongShape)):
        translate.together(text, made)


def test_two_halves_of_different_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another class, of the same class in other sizes, and a text model that has no tower."""
    folder = tower_folders.multimodal(GEMMA, GEMMA.classes[0])
    text, own = which.text_half(folder)[0], translate.to_gguf(folder)
    same(folder, translate.together(text, own))
    pixtral = _of("idefics3")
    another = translate.to_gguf(tower_folders.tower_folder(pixtral, pixtral.classes[0]))
    monkeypatch.setattr(tower_folders, "SEES", tower_folders.SEES | {"intermediate_size": 40})
    smaller = translate.to_gguf(tower_folders.tower_folder(GEMMA, GEMMA.classes[0]))
    for made, sentence in ((another, "its projector .idefics3. is none of"), (smaller, "feed_forward_length is 40")):
        foreign = made.but(metadata={k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")})
        for tower in (made, foreign):
            with pytest.raises(BadFile, match=sentence):
                translate.together(text, tower)
    llama = Checkpoint(dialect="hf", files={"config.json": json.dumps(CONFIG).encode()}, tensors=tensors())
    with pytest.raises(BadFile, match="is none of 'LlamaForCausalLM'"):
        translate.together(llama, own)
    with pytest.raises(BadFile, match="belongs a model of gemma3, not of llama"):
        translate.together(llama, own, rebuilt=True)

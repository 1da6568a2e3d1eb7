"""Hostile checkpoints and models: nothing in them is executed; what cannot be loaded is found before a run begins."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.command import Dudi, write_recipe
from safetensors.torch import load_file, save_file

from dudi.errors import DudiError
from dudi.models.load import load_model
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Models
from dudi.training import checkpoints


# ── checkpoints and models ───────────────────────────────────────────────────────────────────────────────────────────
class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.victim}",)


def archive(file: Path, victim: Path) -> None:
    """A torch file with a hostile pickle in it."""
    torch.save({"state": torch.zeros(2)}, file)
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(file, "w") as made:
        for name, data in parts.items():
            made.writestr(name, pickle.dumps(Touch(victim), 2) if name.endswith("data.pkl") else data)


def bare(file: Path, victim: Path) -> None:
    """A pickle, as torch wrote its files before 1.6."""
    file.write_bytes(pickle.dumps(Touch(victim), 2))


def test_the_pickle_is_hostile(tmp_path: Path) -> None:
    for number, make in enumerate((archive, bare)):
        file, victim = tmp_path / f"{number}.pt", tmp_path / f"victim{number}"
        make(file, victim)
        if make is bare:
            pickle.loads(file.read_bytes())
        else:
            torch.load(file, weights_only=False)
        assert victim.exists()


@pytest.fixture(scope="module")
def stopped(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it is when it was stopped after its first step."""
    from dudi.run import pipeline as train

    folder = tmp_path_factory.mktemp("stopped")
    file = write_recipe(folder, models, method='name = "sft"')
    train.run(load_recipe(file), say=lambda text: None)
    (stage,) = (folder / "run").glob("1-*")
    shutil.rmtree(stage / "model")
    shutil.rmtree(stage / "checkpoint-2")
    return folder


@pytest.mark.parametrize("make", [archive, bare])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_hostile_checkpoint_is_not_executed(
    stopped: Path, tmp_path: Path, name: str, make: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dudi.run import pipeline as train

    out, victim = tmp_path / "run", tmp_path / "victim"
    shutil.copytree(stopped / "run", out)
    (checkpoint,) = out.glob("1-*/checkpoint-1")
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    make(checkpoint / name, victim)
    (checkpoint / checkpoints.MANIFEST).unlink()
    staged = checkpoint.rename(tmp_path / "staged")
    checkpoints.publish(staged, checkpoint)  # with sums that fit: the attacker knows how
    recipe = load_recipe(stopped / "r.toml", [f"output='{out}'"])
    with pytest.raises(DudiError, match="not what this training saved") as error:
        train.run(recipe, resume=True, say=lambda text: None)
    assert "weights_only" not in str(error.value), "torch's advice is to load it without the safeguard"
    assert not victim.exists()


@pytest.mark.parametrize("make", [archive, bare])
@pytest.mark.parametrize("what", ["models.student", "models.teacher", "cold_start.checkpoint"])
def test_a_hostile_model_is_not_executed(dudi: Dudi, what: str, make: Callable[[Path, Path], None]) -> None:
    path, victim = dudi.folder / "hostile", dudi.folder / "victim"
    shutil.copytree(dudi.models / "student", path)
    (path / "model.safetensors").unlink()
    make(path / "pytorch_model.bin", victim)
    line = dudi.run_refused(f"{what}='{path}'")
    assert (
        line.startswith(f"{what}: ") and "pytorch_model.bin is truncated, or holds something other than weights" in line
    )
    assert not victim.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_run(dudi: Dudi, file: str) -> None:
    path, victim = dudi.folder / "hostile", dudi.folder / "victim"
    shutil.copytree(dudi.models / "student", path)
    (path / "theirs.py").write_text(f"open({str(victim)!r}, 'w')\n")
    table = json.loads((path / file).read_text())
    if file == "config.json":
        table |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}}
    else:
        table |= {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.T", "theirs.T"]}}
    (path / file).write_text(json.dumps(table))
    status = dudi("run", str(dudi.file), "--set", f"models.student='{path}'")
    if file == "config.json":  # its tokenizer.json can be read without
        assert (
            status == 2
            and "comes with code of its own, which is not run unasked" in dudi.err
            and len(dudi.err.splitlines()) == 1
        )
    assert not victim.exists()


# ── weights, before a run begins ─────────────────────────────────────────────────────────────────────────────────────
def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A safetensors file with another header, data and all."""

    def edit(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        table = json.loads(data[8 : 8 + length])
        text = json.dumps(change(table) or table).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A whole safetensors file, of other tensors."""

    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, (folder / "model.safetensors").resolve(), metadata={"format": "pt"})

    return edit


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(data) and None


def index(text: str, of: str = "model.safetensors") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / f"{of}.index.json").write_text(text)
        (folder / "x.safetensors").write_bytes(b"")

    return edit


NOT_WHOLE = "is truncated, damaged or not a safetensors file"
INNER = "model.layers.0.mlp.up_proj.weight"
WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (raw(b""), f"model.safetensors {NOT_WHOLE}"),
    "a header without end": (raw(struct.pack("<Q", 2**63) + b"{}"), f"model.safetensors {NOT_WHOLE}"),
    "a header too deep": (raw(struct.pack("<Q", 9000) + b"[" * 9000), f"model.safetensors {NOT_WHOLE}"),
    "a header that is a list": (raw(struct.pack("<Q", 2) + b"[]"), f"model.safetensors {NOT_WHOLE}"),
    "an entry of another kind": (header(lambda t: {"w": 3}), f"model.safetensors {NOT_WHOLE}"),
    "cut": (lambda f: os.truncate(f / "model.safetensors", 9000), f"model.safetensors {NOT_WHOLE}"),
    "too long": (lambda f: (f / "model.safetensors").open("ab").write(b"x") and None, f"model.safetensors {NOT_WHOLE}"),
    "a name missing": (tensors(lambda t: t.pop(INNER)), f"{INNER!r} is missing"),
    "another shape": (
        tensors(lambda t: t.update({"model.norm.weight": torch.ones(4, 8)})),
        "'model.norm.weight' is missing",
    ),
    "a shape that is not its data's": (
        header(lambda t: t["model.norm.weight"].update(shape=[4, 9])),
        f"model.safetensors {NOT_WHOLE}",
    ),
    "data of no tensor": (header(lambda t: t.pop(INNER) and None), f"model.safetensors {NOT_WHOLE}"),
    "a layer too many": (
        tensors(lambda t: t.update({INNER.replace("0", "7"): torch.ones(128, 64)})),
        f"{INNER.replace('0', '7')!r} has no place in it (1 such), and would be left out",
    ),
    "whole numbers": (
        tensors(lambda t: t.update({INNER: t[INNER].char()})),
        f"{INNER!r} is stored as I8, and no quant",
    ),
    "numbers without their scale": (
        tensors(lambda t: t.update({INNER: t[INNER].to(torch.float8_e4m3fn)})),
        f"{INNER!r} is stored as F8_E4M3, and no quantization_config there says how to read it",
    ),
    "not fetched by Git": (
        raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "model.safetensors is a pointer of Git LFS and not the file itself: run `git lfs pull`",
    ),
    "under a name that nobody reads": (
        lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors") and None,
        "holds no weights (model.safetensors, or shards with their index)",
    ),
    "an index of pickles, a part missing": (
        index('{"weight_map": {"a": "y.bin"}}', "pytorch_model.bin"),
        "'y.bin', named in pytorch_model.bin.index.json, is not there",
    ),
    "index not JSON": (index("{"), "model.safetensors.index.json is not readable"),
    "index without files": (index('{"weight_map": 3}'), "model.safetensors.index.json is not readable"),
    "index leads out": (index('{"weight_map": {"a": "../x.safetensors"}}'), "'../x.safetensors', named in"),
    "a part missing": (index('{"weight_map": {"a": "y.safetensors"}}'), "'y.safetensors', named in"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_teacher_that_cannot_be_loaded_is_found_before_the_first_stage(
    dudi: Dudi, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dudi.run import pipeline as train

    path = dudi.folder / "broken"
    shutil.copytree(dudi.models / "teacher", path)
    change, said = WEIGHTS[name]
    change(path)
    monkeypatch.setattr(train, "load_model", lambda *args: pytest.fail("too late"))
    line = dudi.run_refused(f"models.teacher='{path}'")  # the cold start would come first
    assert line.startswith("models.teacher: ") and said in line


HUB: dict[str, tuple[Callable[[Path], None], bool, str | None]] = {
    "whole": (lambda f: None, True, None),
    "cut": (lambda f: os.truncate((f / "model.safetensors").resolve(), 9000), True, f"model.safetensors {NOT_WHOLE}"),
    "a name missing": (tensors(lambda t: t.pop(INNER)), True, f"{INNER!r} is missing"),
    "a part missing, offline": (index('{"weight_map": {"a": "y.safetensors"}}'), True, "'y.safetensors', named in"),
    "a part missing, to be fetched": (index('{"weight_map": {"a": "y.safetensors"}}'), False, None),
    "a part that is there": (
        index('{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}'),
        False,
        f"x.safetensors {NOT_WHOLE}",
    ),
    "no weights, offline": (lambda f: (f / "model.safetensors").unlink(), True, "holds no weights"),
    "no weights, to be fetched": (lambda f: (f / "model.safetensors").unlink(), False, None),
}


@pytest.mark.parametrize("revision", [None, "0" * 40])
@pytest.mark.parametrize("name", HUB)
def test_a_model_in_the_hubs_cache_is_looked_at_too(
    name: str, revision: str | None, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a folder is; what the loader would fetch may be missing while the hub can be reached."""
    from dudi.models import load as loading

    repository = tmp_path / "models--somebody--something"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(models / "teacher", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    blob = repository / "blobs" / "weights"
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    change, offline, said = HUB[name]
    change(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(loading, "is_offline_mode", lambda: offline)
    models_ = Models(student="x")
    config = loading.load_config(str(models / "teacher"), "models.teacher", models_)
    check = functools.partial(
        loading.check_model, config, "somebody/something", "models.teacher", models_, revision, kit.VOCAB
    )
    if said is None:
        check()
        return
    with pytest.raises(DudiError, match=r"^models\.teacher: ") as error:
        check()
    assert said in str(error.value) and "somebody" in str(error.value)


@pytest.mark.parametrize("kind", kit.CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_whole_weights_pass(kind: str, tied: bool, tmp_path: Path) -> None:
    from dudi.models.files import check_weights

    made = kit.model(1, kind=kind, tied=tied, dtype=torch.float32)
    made.save_pretrained(tmp_path / "one")
    made.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").is_file()
    for name in ("one", "parts"):
        check_weights(tmp_path / name, made.config, "model")
    state = {
        name: t for name, t in load_file(tmp_path / "one" / "model.safetensors").items() if name != "lm_head.weight"
    }
    extra = {"v_head.weight": torch.ones(1, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(state | extra, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    load = functools.partial(load_model, str(tmp_path / "one"), "model", Models(student="x"), torch.float32)
    if tied:  # what nothing reads does no harm
        check_weights(tmp_path / "one", made.config, "model")
        load()
        return
    with pytest.raises(DudiError, match=r"'lm_head\.weight' is missing"):  # nobody makes a head up
        load()
    save_file(state, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DudiError, match=r"'lm_head\.weight' is missing"):
        check_weights(tmp_path / "one", made.config, "model")

"""What a resumed run may have otherwise than the one it continues: its models by contents, its keys, its length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import runs
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from dudi.errors import DudiError
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Recipe
from dudi.run import identity
from dudi.run.identity import check_unchanged, identities
from dudi.run.pipeline import run
from dudi.run.resume import FREE
from dudi.training import checkpoints

CONSTANT = {"schedule": "constant", "epochs": 1.0, "save_every": 2}


def silent(text: str) -> None:
    pass


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def nudge(folder: Path) -> None:
    """Another last bit of one weight."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(torch.int32).view(-1)[0] ^= 1
    save_file(tensors, file, metadata={"format": "pt"})


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("student", nudge, "model.safetensors has other contents"),
        ("teacher", nudge, "model.safetensors has other contents"),
        ("teacher", other_template, "chat_template.jinja has other contents"),
        ("teacher", lambda f: (f / "chat_template.jinja").unlink(), "chat_template.jinja is gone"),
        (
            "teacher",
            lambda f: shutil.copy(f / "model.safetensors", f / "model-2.safetensors"),
            "model-2.safetensors is n",
        ),
    ],
)
def test_a_model_that_changed_is_named(key: str, change: Any, said: str, tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "gkd"}, training=CONSTANT, cold_start={"method": {"name": "none"}})
    out = run(recipe, say=silent)
    kept = json.loads((out / "environment.json").read_text())["models"]
    weights = tmp_path / key / "model.safetensors"
    entry = kept[f"models.{key}"]["files"]["model.safetensors"]
    assert entry == {
        "size": weights.stat().st_size,
        "sha256": runs.digests(tmp_path)[f"{key}/{weights.name}"],
        "of": "file",
    }
    before = runs.digests(out)
    change(tmp_path / key)
    with pytest.raises(DudiError, match=rf"models.{key}: '{tmp_path}/{key}' is not the model that .* \({said}"):
        run(recipe, resume=True, say=silent)
    assert runs.digests(out) == before


def test_what_is_beside_a_model_is_no_part_of_it(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "sft"}, training=CONSTANT)
    run(recipe, say=silent)
    (tmp_path / "student" / "README.md").write_text("x")
    (tmp_path / "student" / "evals").mkdir()
    run(recipe, resume=True, say=silent)


def test_a_large_file_is_told_by_its_size_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header, end and every 256th part; a training that moves all weights changes them all."""
    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "BLOCK", 16)
    monkeypatch.setattr(identity, "BLOCKS", 5)
    file = tmp_path / "model.safetensors"
    data = bytearray(range(256)) * 8

    def told() -> Any:
        file.write_bytes(data)
        return identity._fingerprint.__wrapped__(file, len(data), 0)

    first = told()
    assert first["of"] == "size and 5 blocks of 16 bytes" and first["size"] == 2048
    for place, seen in ((0, True), (15, True), (16, False), (508, True), (523, True), (524, False), (2047, True)):
        data[place] ^= 1
        assert (told() != first) is seen, place
        data[place] ^= 1
    assert told() == first


def test_a_hub_model_is_told_by_its_commit(tmp_path: Path) -> None:
    """What the hub had not sent yet when the run began is no change; another commit is."""

    def snapshot(commit: str, *names: str) -> Path:
        folder = tmp_path / "models--a--b" / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text(name)
        return folder

    then = {"models.teacher": identity._identity(str(snapshot("c0ffee", "config.json")), None)}
    assert then["models.teacher"]["commit"] == "c0ffee"
    later = {"models.teacher": identity._identity(str(snapshot("c0ffee", "model.safetensors")), None)}
    assert len(later["models.teacher"]["files"]) == 2
    check_unchanged(later, then, tmp_path)
    moved = {"models.teacher": identity._identity(str(snapshot("beef", "config.json")), None)}
    with pytest.raises(DudiError, match="commit beef of the hub, c0ffee then"):
        check_unchanged(moved, then, tmp_path)


def test_templates_that_changed_are_named(tmp_path: Path) -> None:
    """They decide what models read, as much as the models' own files."""
    jinja, folder = tmp_path / "chat.jinja", tmp_path / "verbalizer"
    folder.mkdir()
    for file in (jinja, folder / "id.toml"):
        file.write_text("a")
    given = {"chat": {"template": str(jinja)}, "data": {"template_folder": str(folder)}}
    recipe = runs.recipe(tmp_path, {"name": "dudi"}, **given)
    then = identities(recipe)
    check_unchanged(identities(recipe), then, tmp_path)
    for file, said in (
        (jinja, "chat.template: .*is not the file"),
        (folder / "id.toml", "data.template_folder: .*the f"),
    ):
        file.write_text("b")
        with pytest.raises(DudiError, match=rf"{said}.*{file.name} has other contents"):
            check_unchanged(identities(recipe), then, tmp_path)
        file.write_text("a")
    (folder / "vi.toml").write_text("a")
    with pytest.raises(DudiError, match=r"data\.template_folder: .*vi\.toml is new"):
        check_unchanged(identities(recipe), then, tmp_path)


def test_every_model_of_a_recipe_is_recorded(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "dudi"}, cold_start={"checkpoint": str(tmp_path / "student")})
    assert list(identities(recipe)) == ["models.student", "models.teacher", "cold_start.checkpoint"]
    without = runs.recipe(tmp_path, {"name": "sft"}, cold_start={"checkpoint": str(tmp_path / "student")})
    assert list(identities(without)) == ["models.student", "models.teacher"], "the method has no cold start"


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        options = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        yield f"{prefix}{name}"
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def test_the_keys_that_may_change_exist() -> None:
    assert set(FREE) <= set(keys(Recipe))


@pytest.mark.slow
def test_keys_that_mean_nothing_may_change_and_are_said(tmp_path: Path) -> None:
    """The run goes on with them: its recipe has the new ones, and the weights are those of the straight run."""
    method = {"name": "sdft"}
    none = {"method": {"name": "none"}}
    straight = run(runs.recipe(tmp_path, method, output="straight", training=CONSTANT, cold_start=none), say=silent)
    first = runs.recipe(tmp_path, method, output="stopped", training=CONSTANT, cold_start=none)
    out = run(first, say=silent)
    shutil.rmtree(out / "1-sdft" / "model")
    shutil.rmtree(out / "1-sdft" / "checkpoint-3")
    (out / "summary.json").unlink()
    said: list[str] = []
    other = {**CONSTANT, "micro_batch": 4, "head_chunk": 64, "save_every": 1, "keep_checkpoints": 5}
    changed = runs.recipe(
        tmp_path,
        method,
        output="stopped",
        training=other,
        cold_start=none,
        models={"attention": "eager"},
        description="x",
    )
    run(changed, resume=True, say=said.append)
    assert "resumed with training.micro_batch = 4 instead of 2" in said
    assert "resumed with models.attention = 'eager' instead of None" in said
    assert load_recipe(out / "recipe.toml") == changed
    assert runs.furthest(runs.weights(out / "1-sdft"), runs.weights(straight / "1-sdft")) < 1e-4
    run(changed, resume=True, say=silent)
    with pytest.raises(DudiError, match=r"resume with another recipe: training\.log_every is 2"):
        again = {**other, "log_every": 2}
        run(changed.model_copy(update={"training": changed.training.model_copy(update=again)}), resume=True, say=silent)


# ── a longer run ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("method", ["sft", pytest.param("sdft", marks=pytest.mark.slow)])
def test_a_finished_run_under_a_constant_rate_is_extended(method: str, tmp_path: Path) -> None:
    """Two epochs in one go, and one epoch that becomes two: the same weights bit for bit, and the same metrics."""
    none = {"cold_start": {"method": {"name": "none"}}} if method == "sdft" else {}
    twice = {**CONSTANT, "epochs": 2.0}
    straight = run(runs.recipe(tmp_path, {"name": method}, output="straight", training=twice, **none), say=silent)
    out = run(runs.recipe(tmp_path, {"name": method}, output="longer", training=CONSTANT, **none), say=silent)
    said: list[str] = []
    longer = runs.recipe(tmp_path, {"name": method}, output="longer", training=twice, **none)
    run(longer, resume=True, say=said.append)
    assert "resumed with training.epochs = 2.0 instead of 1.0" in said
    assert f"{method}: goes on from step 3 to 6" in said
    runs.assert_same_end(straight, out)
    run(longer, resume=True, say=silent)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_that_went_down_cannot_be_extended(schedule: str, tmp_path: Path) -> None:
    short = {**CONSTANT, "schedule": schedule, "max_steps": 2}
    out = run(runs.recipe(tmp_path, {"name": "sft"}, training=short), say=silent)
    before = runs.digests(out)
    with pytest.raises(
        DudiError, match=rf"max_steps = 3: .* started with 2 .*: under training.schedule = '{schedule}' the rate"
    ):
        run(runs.recipe(tmp_path, {"name": "sft"}, training={**short, "max_steps": 3}), resume=True, say=silent)
    assert runs.digests(out) == before


@pytest.mark.slow
def test_what_cannot_become_longer(tmp_path: Path) -> None:
    """A cold start that a later stage stands on; a training that would be shorter."""
    training = {**CONSTANT, "max_steps": 2}
    out = run(runs.recipe(tmp_path, {"name": "sdft"}, training=training), say=silent)
    assert checkpoints.complete(out / "1-cold-start") == [], "a finished stage keeps its model only"
    assert len(checkpoints.complete(out / "2-sdft")) > 0

    def resume(steps: int, cold: int) -> None:
        cold_start = {"training": {**training, "max_steps": cold}}
        longer = {**training, "max_steps": steps}
        run(runs.recipe(tmp_path, {"name": "sdft"}, training=longer, cold_start=cold_start), resume=True, say=silent)

    with pytest.raises(
        DudiError, match=r"stage cold-start is finished .* give cold_start\.training\.max_steps = 2, too"
    ):
        resume(3, 3)
    with pytest.raises(DudiError, match=r"another recipe: training\.max_steps is 1"):
        resume(1, 2)
    resume(3, 2)
    assert checkpoints.step_of(checkpoints.complete(out / "2-sdft")[-1]) == 3

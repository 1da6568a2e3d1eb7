"""Output folders that cannot be used, and resuming what cannot be resumed: one line, nothing changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from kit.command import Dudi, write_recipe
from kit.runs import digests

from dudi.recipe.read import load_recipe
from dudi.run import pipeline as train


# ── the output folder ────────────────────────────────────────────────────────────────────────────────────────────────
def test_an_occupied_folder_is_left_alone(dudi: Dudi) -> None:
    dudi.out.mkdir()
    (dudi.out / "mine.txt").write_text("mine")
    line = dudi.refused("run", str(dudi.file))
    assert "is occupied: continue that run with --resume, or choose another folder with --output" in line
    assert digests(dudi.out).keys() == {"mine.txt"} and (dudi.out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "output, said",
    [("{f}/r.toml", "is occupied"), ("{f}/r.toml/run", "r.toml' is a file"), ("{f}/" + "x" * 300, "cannot be used")],
)
def test_an_output_path_that_cannot_be_a_folder(dudi: Dudi, output: str, said: str) -> None:
    before = digests(dudi.folder)
    assert said in dudi.refused("run", str(dudi.file), "--output", output.format(f=dudi.folder))
    assert digests(dudi.folder) == before


def test_an_unwritable_folder_is_found_before_the_data_is_read(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != dudi.folder)  # root may write anywhere
    monkeypatch.setattr(train, "prepare", lambda *args: pytest.fail("too late"))
    assert f"cannot be made: '{dudi.folder}' cannot be written to" in dudi.run_refused()


# ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one stage."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_recipe(folder, models, method='name = "sft"')
    train.run(load_recipe(file), say=lambda text: None)
    return folder


@pytest.mark.parametrize(
    "change, said",
    [
        ("training.lr=5e-4", "training.lr is 0.0005, but the run in "),
        ("seed=3", "seed is 3, but the run in "),
        ("method.loss_on=all_assistant", "method.loss_on is 'all_assistant', but the run in "),
        ("method.name=dft", "method.name is 'dft', but the run in "),
        ("limits.total={default = 600, my = 700}", "limits.total is {'default': 600, 'my': 700}, but the run in "),
        ("cold_start.training.lr=9.0", "cold_start.training.lr is 9.0, but the run in "),
        ("data.languages=['id']", "data.languages is ['id'], but the run in "),
        ("models.teacher=x", "models.teacher is 'x', but the run in "),
    ],
)
def test_resume_with_another_recipe_names_the_key(dudi: Dudi, finished: Path, change: str, said: str) -> None:
    out = dudi.folder / "run"
    shutil.copytree(finished / "run", out)
    before = digests(out)
    argv = ("run", str(finished / "r.toml"), "--resume", "--output", str(out))
    assert f"resume with another recipe: {said}" in dudi.refused(*argv, "--set", change)
    assert digests(out) == before
    assert dudi(*argv) == 0, "in another place it is the same run"


def test_resume_with_nothing_there(dudi: Dudi) -> None:
    line = dudi.refused("run", str(dudi.file), "--resume")
    assert f"nothing to resume in '{dudi.out}': it holds no recipe.toml; start without --resume" in line
    assert not dudi.out.exists()
    dudi.out.mkdir()
    assert "nothing to resume in" in dudi.refused("run", str(dudi.file), "--resume")


@pytest.mark.parametrize(
    "name, said", [("recipe.toml", "not valid TOML"), ("data/train.jsonl", "changed since it was")]
)
def test_resume_of_a_damaged_run(dudi: Dudi, finished: Path, name: str, said: str) -> None:
    out = dudi.folder / "run"
    shutil.copytree(finished / "run", out)
    with (out / name).open("a", encoding="utf-8") as file:
        file.write("[[")
    before = digests(out)
    assert said in dudi.refused("run", str(finished / "r.toml"), "--resume", "--output", str(out))
    assert digests(out) == before

"""Two processes that train an adapter are one; under FSDP2, each with half of what the adapter stands beside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from kit import runs
from kit.processes import start_two
from kit.workers import adapters
from safetensors.torch import load_file

from dudi.models.adapter import WEIGHTS
from dudi.run.pipeline import run

pytest.importorskip("peft")
pytestmark = pytest.mark.slow


def assert_same(one: Path, two: Path) -> None:
    """The same adapters, models and metrics of every stage."""
    assert len(runs.stages(one)) == len(runs.stages(two)) > 0
    for stage, twin in zip(runs.stages(one), runs.stages(two), strict=True):
        assert stage.name == twin.name
        assert runs.furthest(runs.weights(stage), runs.weights(twin)) < 1e-6
        mine, theirs = (load_file(folder / "adapter" / WEIGHTS) for folder in (stage, twin))
        assert runs.furthest(mine, theirs) < 1e-6
        for a, b in zip(runs.metrics(stage), runs.metrics(twin), strict=True):
            runs.assert_close(b, a)
        configs = [json.loads((folder / "model" / "config.json").read_text()) for folder in (stage, twin)]
        assert configs[0] == configs[1]


def test_two_processes_with_an_adapter_are_one(tmp_path: Path) -> None:
    one = run(adapters.recipe(tmp_path, "one"), say=lambda *_: None)
    start_two("adapters", tmp_path)
    assert_same(one, tmp_path / "two")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that hold half of the student each."""
    folder = tmp_path_factory.mktemp("shards")
    adapters.recipe(folder, "two")  # models and rows are made once
    return start_two("adapters", folder, "fsdp2")


@pytest.mark.parametrize("case", adapters.CASES)
def test_two_halves_with_an_adapter_are_one(case: str, shards: Path) -> None:
    one = run(adapters.recipe(shards, f"one-{case}", case), say=lambda *_: None)
    assert_same(one, shards / f"two-{case}")


def test_each_has_half_of_what_is_frozen_and_all_of_the_adapter(shards: Path) -> None:
    """R and SDFT's average are the student itself."""
    for rank in range(2):
        found = json.loads((shards / f"held-{rank}.json").read_text())
        assert {name.partition("/")[0] for name in found} == {f"two-{case}" for case in adapters.CASES}
        for name, held in found.items():
            assert held["world"] == 2 and held["class"] == "FSDPQwen2ForCausalLM"
            assert held["sharded"] and held["adapter"], name
            assert 0.5 * held["of"] <= held["bytes"] < 0.52 * held["of"]
            assert held["reference"] is name.endswith(("dudi", "spin", "spin-1")), name
            assert held["average"] is name.endswith("sdft"), name


def test_halves_that_were_stopped_end_like_the_straight_ones(shards: Path) -> None:
    runs.assert_same_end(shards / "two-dudi", shards / "stopped")
    for stage in runs.stages(shards / "two-dudi"):
        mine, theirs = (load_file(folder / "adapter" / WEIGHTS) for folder in (stage, shards / "stopped" / stage.name))
        assert runs.identical(mine, theirs)


def test_what_two_halves_saved_is_resumed_by_one_process(shards: Path, tmp_path: Path) -> None:
    """From the checkpoint of step 2."""
    recipe = adapters.recipe(shards, "two-dudi")
    last = tmp_path / "run"
    shutil.copytree(shards / "two-dudi", last)
    stage = runs.stages(last)[-1]
    for name in ("model", "adapter", "checkpoint-3"):
        shutil.rmtree(stage / name)
    assert (stage / "checkpoint-2").is_dir()
    run(recipe.model_copy(update={"output": str(last)}), resume=True, say=lambda *_: None)
    assert_same(shards / "two-dudi", last)

"""Two processes that train an adapter are one."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import runs
from kit.processes import start_two
from kit.workers import adapters
from safetensors.torch import load_file

from dudi.run.pipeline import run

pytest.importorskip("peft")


@pytest.mark.slow
def test_two_processes_with_an_adapter_are_one(tmp_path: Path) -> None:
    one = run(adapters.recipe(tmp_path, "one"), say=lambda *_: None)
    start_two("adapters", tmp_path)
    for stage in runs.stages(one):
        twin = tmp_path / "two" / stage.name
        assert runs.furthest(runs.weights(stage), runs.weights(twin)) < 1e-6
        mine, theirs = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (stage, twin))
        assert runs.furthest(mine, theirs) < 1e-6
        for a, b in zip(runs.metrics(stage), runs.metrics(twin), strict=True):
            runs.assert_close(b, a)

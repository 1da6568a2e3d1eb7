"""One of two processes fails before training begins: all end soon, with one message and a status that is not 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from kit import processes, runs
from kit.processes import free_port

from dudi.recipe.read import dump_recipe
from dudi.run.launch import Launch

PATIENCE = 600
"""Seconds after which a run hangs: a busy machine's time to start it; gloo's own patience is half an hour."""
PATCH = """
import os
if "RANK" in os.environ:
    with open(os.path.join({folder!r}, "pid-" + os.environ["RANK"]), "w") as file:
        file.write(str(os.getpid()))
if os.environ.get("RANK") == "1":
    import dudi.run.pipeline as t
    real = t.load_model
    def no_model(path, *rest): return real('/no/such/model', *rest)
    def broken(*_): raise ZeroDivisionError('while preparing')
    {place}
"""
PLACES = {
    "path": "t.load_model = no_model",  # the first process finds it, and begins to load: together, where it is sharded
    "exception": "t.prepare = broken",
}
NO_MODEL = "models.student: no folder '/no/such/model'; give a model folder or a hub name such as Qwen/Qwen2.5-0.5B"


def run_two(place: str, mode: Launch, folder: Path, *launcher: str) -> tuple[int, list[str]]:
    """Two processes, of which the second is patched: exit status, and lines of standard error. None is left."""
    (folder / "sitecustomize.py").write_text(PATCH.format(folder=str(folder), place=PLACES[place]), encoding="utf-8")
    recipe = runs.recipe(folder, {"name": "sft"}, output="run", training={"epochs": 1.0})
    (folder / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    env = processes.environment()
    env["PYTHONPATH"] = os.pathsep.join((str(folder), env["PYTHONPATH"]))
    command = [sys.executable, *launcher, "-m", "dudi", "run", str(folder / "recipe.toml"), "--no-rehearsal"]
    if launcher:
        env |= mode.environment()
    else:
        command += ["--launch", mode.value, "--nproc", "2"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        left = [pid for pid in (int(file.read_text()) for file in folder.glob("pid-*")) if is_alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert len(list(folder.glob("pid-*"))) == 2 and not left, "a process that outlives its launcher"
    return process.returncode, err.splitlines()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("mode", [Launch.DDP, Launch.FSDP2])
def test_a_model_that_one_process_does_not_find(mode: Launch, tmp_path: Path) -> None:
    status, lines = run_two("path", mode, tmp_path)
    assert status == 2, lines[-40:]
    assert [line for line in lines if line.startswith("dudi:")] == [lines[-1]] == [f"dudi: process 1: {NO_MODEL}"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [Launch.DDP, Launch.FSDP2])
def test_a_process_that_breaks_while_it_prepares(mode: Launch, tmp_path: Path) -> None:
    """A fault of the software: its traceback is shown, and the last line says where to look."""
    status, lines = run_two("exception", mode, tmp_path)
    assert status == 1, lines[-40:]
    assert [line for line in lines if line.startswith("dudi:")] == [lines[-1]]
    assert lines[-1].startswith("dudi: process ") and lines[-1].endswith(" failed with exit status 1; see above")
    assert sum("ZeroDivisionError: while preparing" in line for line in lines) == 1


@pytest.mark.slow
def test_a_process_that_fails_under_another_launcher(tmp_path: Path) -> None:
    """torchrun itself: it has its own page of text, and our one line in it."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    status, lines = run_two("path", Launch.FSDP2, tmp_path, *torchrun, "--master-port", str(free_port()))
    assert status == 1, lines[-40:]
    assert [line for line in lines if line.startswith("dudi:")] == [f"dudi: {NO_MODEL}"]

"""One run at a time in a folder: who holds it is said, a dead owner never blocks, workers end with their launcher."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kit import processes, runs

from dudi.errors import DudiError
from dudi.files import read_lines
from dudi.lock import LOCK, Owner, check_free, locked
from dudi.recipe.read import dump_recipe
from dudi.run import launch
from dudi.run.pipeline import run

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom dudi.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(600)"
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=processes.environment())
    assert started.stdout is not None and started.stdout.readline()
    yield started
    started.kill()
    started.wait()


def test_a_held_folder_says_whose_and_since_when(other: subprocess.Popen[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    since = json.loads((out / LOCK).read_text())["since"]
    said = rf"'{out}' is in use by process {other.pid} on \S+ since {since[:10]} .* \(`-c {out}`\)"
    for _ in range(2):  # to look does not take it
        with pytest.raises(DudiError, match=said):
            check_free(out)
    with pytest.raises(DudiError, match=said), locked(out):
        pytest.fail("held")
    for resume in (False, True):
        with pytest.raises(DudiError, match=said):
            run(runs.recipe(tmp_path, {"name": "sft"}, output="run"), resume, say=lambda text: None)
    assert [f.name for f in out.iterdir()] == [LOCK], "the other one's"


def test_a_dead_owner_never_blocks(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.kill()
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    check_free(tmp_path / "run")
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_made_for_the_lock_alone_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new"), pytest.raises(DudiError, match=f"process {os.getpid()} "):
        check_free(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "kept").write_text("x")
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["kept"]


def owner(**changes: Any) -> str:
    me = Owner.me()
    return json.dumps({**vars(me), **changes})


@pytest.mark.parametrize(
    ("left", "free"),
    [
        (owner(), False),
        (owner(born=0.0), True),  # the pid was given to another process since
        (owner(pid=2**22 + 7), True),
        (owner(host="elsewhere"), False),
        ("", False),  # it is being written
    ],
    ids=["alive", "pid again", "dead", "another host", "empty"],
)
def test_without_flock_the_owner_is_looked_up(
    left: str, free: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path), pytest.raises(DudiError, match=f"process {os.getpid()} "):
        check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOCK).write_text(left)
    if free:
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert not (tmp_path / LOCK).exists()
    else:
        with pytest.raises(DudiError, match="in use by"), locked(tmp_path):
            pytest.fail("held")
        assert (tmp_path / LOCK).read_text() == left


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DudiError, match="cannot be locked: Not a directory"), locked(tmp_path / "file" / "run"):
        pytest.fail("not made")


# ── the launcher dies ────────────────────────────────────────────────────────────────────────────────────────────────
PARENT = (
    "import os, subprocess, sys\n"
    "from dudi.run import launch\n"
    "env = {**os.environ, 'RANK': '0', launch.LAUNCHER: str(os.getpid())}\n"
    "text = 'import sys, time; from dudi.run import launch; sys.platform = sys.argv[1]; launch.WATCHED = 0.1;'\n"
    "text += 'launch.end_with_launcher(); print(flush=True); time.sleep(600)'\n"
    "child = subprocess.Popen([sys.executable, '-c', text, sys.argv[1]], env=env, stdout=subprocess.PIPE)\n"
    "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
)


@pytest.mark.parametrize("platform", [sys.platform, "another"])
def test_a_worker_ends_with_its_launcher(platform: str) -> None:
    """By the kernel's signal, and by the watch where there is none."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, platform], stdout=subprocess.PIPE, text=True, env=processes.environment()
    )
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    assert worker.is_running()
    parent.kill()
    parent.wait()
    assert ended(worker)


def ended(process: psutil.Process, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_whose_launcher_is_gone_already() -> None:
    text = "from dudi.run.launch import end_with_launcher\nend_with_launcher()\nprint('lives')"
    env = {**processes.environment(), "RANK": "0", launch.LAUNCHER: "1"}
    done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


@pytest.mark.slow
def test_a_launcher_killed_alone_leaves_no_worker_and_the_run_goes_on(tmp_path: Path) -> None:
    """Two processes; while they train, a second run is refused; then the launcher is killed, and `--resume` goes on."""
    recipe = runs.recipe(tmp_path, {"name": "sft"}, output="run", training={"epochs": 400.0, "save_every": 2})
    (tmp_path / "r.toml").write_text(dump_recipe(recipe))
    command = [sys.executable, "-m", "dudi", "run", str(tmp_path / "r.toml")]
    two = [*command, "--launch", "ddp", "--nproc", "2"]
    env = {k: v for k, v in processes.environment().items() if k != "GLOO_SOCKET_IFNAME"}
    stage = tmp_path / "run" / "1-sft"

    def start(*more: str) -> subprocess.Popen[str]:
        with open(tmp_path / "err", "w") as err:
            return subprocess.Popen([*two, *more], env=env, stdout=err, stderr=err, text=True)

    def wait_for(step: int, started: subprocess.Popen[str]) -> None:
        while not any(int(f.name.partition("-")[2]) >= step for f in stage.glob("checkpoint-*")):
            assert started.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.1)

    first = start()
    wait_for(4, first)
    workers = psutil.Process(first.pid).children()
    assert len(workers) == 2
    for more in ([], ["--resume"]):
        refused = subprocess.run([*command, *more], env=env, capture_output=True, text=True)
        assert refused.returncode == 2 and f"is in use by process {workers[0].pid} on " in refused.stderr
    first.kill()
    assert all(ended(worker) for worker in workers)
    before = max(int(f.name.partition("-")[2]) for f in stage.glob("checkpoint-*"))
    second = start("--resume")
    wait_for(before + 2, second)
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=300) == 143, (tmp_path / "err").read_text()
    steps = [line["step"] for line in read_lines(stage / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)), "no line twice, none missing"

"""`dudi run --launch`: shipped configurations, refusals, and real launches of two processes on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from kit import processes, runs
from kit.runs import assert_close
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from transformers import AutoModelForCausalLM

from dudi.errors import DudiError
from dudi.recipe.read import dump_recipe, parse_recipe
from dudi.recipe.schema import Recipe
from dudi.run import launch
from dudi.run.launch import CONFIGS, Launch, check_launch, launch_run, mode_of, processes_here
from dudi.run.pipeline import run
from dudi.training import checkpoints
from dudi.training import faults as guards

SHORT = {"epochs": 1.0, "save_every": 2}
FLOAT64 = {"models": {"precision": "float64"}}


# ── configurations ───────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("mode", Launch)
def test_accelerate_reads_the_shipped_configuration(mode: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerate's own launcher would set is the mode; so is what our wrapper sets."""
    monkeypatch.chdir(CONFIGS)
    arguments = launch_command_parser().parse_args(["--config_file", str(mode.config), "-m", "dudi", "run", "tiny"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_machines == 1 and arguments.mixed_precision in (None, "no")
    environment = prepare_multi_gpu_env(arguments)
    assert mode_of(environment | {"WORLD_SIZE": "8"}) is mode
    ours = mode.environment()
    assert mode_of(ours | {"WORLD_SIZE": "2"}) is mode
    assert {key: environment[key] for key in ours} == ours
    assert yaml.safe_load(mode.config.read_text())["num_processes"] == 8


def test_mode_of_a_process() -> None:
    assert mode_of({}) is None
    assert mode_of({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}) is None, "no launcher: it is alone"
    assert mode_of({"WORLD_SIZE": "2"}) is Launch.DDP
    with pytest.raises(DudiError, match="FSDP version 1 is not supported"):
        mode_of({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"})


@pytest.mark.parametrize("word", ["true", "True", "1"])
@pytest.mark.parametrize("launcher", [{}, {"WORLD_SIZE": "2"}])
def test_deepspeed_is_refused(word: str, launcher: dict[str, str]) -> None:
    with pytest.raises(DudiError, match=r"DeepSpeed is not supported.*use fsdp2") as error:
        mode_of({"ACCELERATE_USE_DEEPSPEED": word, **launcher})
    assert "\n" not in str(error.value)
    assert mode_of({"ACCELERATE_USE_DEEPSPEED": "false", "WORLD_SIZE": "2"}) is Launch.DDP


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def tiny(**tables: Any) -> Recipe:
    base = {"name": "x", "method": {"name": "dudi"}, "models": {"student": "s", "teacher": "t"}}
    return parse_recipe({**base, "data": {"source": "builtin"}, **tables}, "test")


def test_how_many_processes() -> None:
    assert processes_here(2, 0) == 2 and processes_here(None, 4) == 4 and processes_here(3, 4) == 3
    with pytest.raises(DudiError, match="--nproc 5: only 4 GPUs are visible"):
        processes_here(5, 4)
    with pytest.raises(DudiError, match="no GPU is visible; say with --nproc"):
        processes_here(None, 0)


def test_a_sharded_teacher_cannot_write() -> None:
    shard = {"student": "s", "teacher": "t", "teacher_sharding": "shard"}
    with pytest.raises(DudiError, match="teacher_sharding = 'shard': a sharded teacher cannot write answers"):
        check_launch(tiny(method={"name": "seqkd"}, models=shard), 2)
    check_launch(tiny(method={"name": "seqkd"}, models=shard), 1)
    check_launch(tiny(models=shard), 2)


def test_a_launcher_in_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DudiError, match="itself started by a launcher"):
        launch_run(Launch.DDP, 2, "tiny", tiny(), (), False)


# ── signals to the wrapper ───────────────────────────────────────────────────────────────────────────────────────────
CHILD = "import os, signal, sys\nsignal.sigwait([signal.SIGTERM, signal.SIGUSR1])\n"
SAVED = 'open(os.environ["DUDI_ERRORS"] + "/0", "w").write(\'{"line": "saved", "status": 143}\')\nsys.exit(143)'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("started", ["listens", "does not listen yet", "not there yet"])
def test_a_signal_to_the_wrapper(
    number: signal.Signals, started: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on to the started process, whose line is shown; the status is 143, as without a launcher."""
    before = signal.getsignal(number)

    def start(arguments: Any) -> None:
        assert arguments.signals_to_handle == "SIGINT,SIGHUP,SIGQUIT", "torch's launcher would kill after 30 seconds"
        if started == "not there yet":
            os.kill(os.getpid(), number)
            pytest.fail("it would be lost")
        block = f"signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])"
        text = CHILD.replace("\n", f"\n{block}\nprint(flush=True)\n", 1) + SAVED
        if started == "does not listen yet":
            text = "import time\nprint(flush=True)\ntime.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, env=dict(os.environ))
        assert child.stdout is not None and child.stdout.readline()
        os.kill(os.getpid(), number)
        try:
            status = child.wait(timeout=60)
        finally:
            child.kill()
        assert status == (143 if started == "listens" else -number)
        raise ChildFailedError("dudi", {0: ProcessFailure(0, child.pid, status, "")})

    for name in (launch.ERRORS, launch.LAUNCHER, "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "1")  # so that they are put back
    monkeypatch.setattr("torch.distributed.run.run", start)
    monkeypatch.setattr(sys, "argv", ["dudi", "run", "tiny", "--launch", "ddp"])
    if started == "not there yet":
        with pytest.raises(SystemExit) as end:
            launch.launch(Launch.DDP, 2, ["run", "tiny"])
        assert end.value.code == 143
    else:
        assert launch.launch(Launch.DDP, 2, ["run", "tiny"]) == 143 == guards.Preempted.status
        said = "saved" if started == "listens" else "stopped; to go on: dudi run tiny --launch ddp --resume"
        assert capsys.readouterr().err == f"dudi: {said}\n"
    assert signal.getsignal(number) is before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "send"), [(signal.SIGUSR1, os.kill), (signal.SIGTERM, os.killpg)])
def test_a_signal_to_a_real_wrapper_saves(number: signal.Signals, send: Any, tmp_path: Path) -> None:
    """To the wrapper alone or to its process group: both processes end after their step, which is saved."""
    recipe = runs.recipe(tmp_path, {"name": "sft"}, output="run", training={"epochs": 400.0, "save_every": 2})
    env = {k: v for k, v in processes.environment().items() if k != "GLOO_SOCKET_IFNAME"}
    command = [sys.executable, "-m", "dudi", "run", written(tmp_path, recipe), "--launch", "ddp", "--nproc", "2"]
    with open(tmp_path / "err", "w") as err:
        started = subprocess.Popen(command, env=env, stdout=err, stderr=err, start_new_session=True)
        while not list((tmp_path / "run").glob("1-sft/checkpoint-*")):
            assert started.poll() is None, (tmp_path / "err").read_text()
            time.sleep(0.2)
        send(started.pid, number)
        assert started.wait(timeout=300) == 143
    last = (tmp_path / "err").read_text().splitlines()[-1]
    step = checkpoints.step_of(checkpoints.complete(tmp_path / "run" / "1-sft")[-1])
    assert (
        last.endswith(f"after step {step}: checkpoint-{step} is saved; continue with --resume") and number.name in last
    )


# ── real launches ────────────────────────────────────────────────────────────────────────────────────────────────────
def dudi(*arguments: str, path: Path | None = None, timeout: float = 500) -> tuple[int, str, str]:
    """The command in a process of its own: exit status, standard output, standard error."""
    env = {k: v for k, v in processes.environment().items() if k != "GLOO_SOCKET_IFNAME"}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join((str(path), env["PYTHONPATH"]))
    command = [sys.executable, "-m", "dudi", "run", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def written(folder: Path, recipe: Recipe) -> str:
    file = folder / f"{Path(recipe.output).name}.toml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    return str(file)


def assert_same_run(one: Path, other: Path) -> None:
    """The same stages, metrics and weights, the latter as ordinary folders."""
    assert [s.name for s in runs.stages(one)] == [s.name for s in runs.stages(other)]
    for a, b in zip(runs.stages(one), runs.stages(other), strict=True):
        assert len(runs.metrics(a)) == len(runs.metrics(b)) > 1
        for mine, theirs in zip(runs.metrics(a), runs.metrics(b), strict=True):
            assert_close(theirs, mine)
        assert runs.furthest(runs.weights(a), runs.weights(b)) < 1e-6
        assert sorted(f.name for f in (a / "model").iterdir()) == sorted(f.name for f in (b / "model").iterdir())
    assert json.loads((other / "environment.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_launch_ddp_is_one_process(tmp_path: Path) -> None:
    """Cold start and DuDi with sampled responses, through the command, in two processes; and the page shown once."""
    cold = {"cold_start": {"training": SHORT}}
    name = written(tmp_path, runs.recipe(tmp_path, {"name": "dudi"}, output="two", training=SHORT, **cold, **FLOAT64))
    status, out, err = dudi(name, "--launch", "ddp", "--nproc", "2")
    assert status == 0, err[-4000:]
    assert out.count("run folder:") == out.count("stage 1 of 2: cold-start\n") == 1
    again = runs.recipe(tmp_path, {"name": "dudi"}, output="one", training=SHORT, **cold, **FLOAT64)
    assert_same_run(run(again, say=lambda *_: None), tmp_path / "two")


@pytest.mark.slow
def test_launch_fsdp2_is_one_process(tmp_path: Path) -> None:
    """Student and teacher sharded: the same numbers, and folders as one process writes them."""
    cold = {"cold_start": {"training": SHORT}}
    recipe = runs.recipe(tmp_path, {"name": "dudi"}, output="two", training=SHORT, **cold, **FLOAT64)
    name = written(tmp_path, recipe)
    status, _, err = dudi(name, "--launch", "fsdp2", "--nproc", "2", "--set", "models.teacher_sharding='shard'")
    assert status == 0, err[-4000:]
    again = runs.recipe(tmp_path, {"name": "dudi"}, output="one", training=SHORT, **cold, **FLOAT64)
    assert_same_run(run(again, say=lambda *_: None), tmp_path / "two")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "2-dudi" / "model", dtype=torch.float64)
    assert type(made).__name__ == "Qwen2ForCausalLM" and made.get_output_embeddings().weight.shape[0] > 0


PATCHES = {
    "data": "import dudi.run.pipeline as t\ndef bad(*_): raise DudiError('these rows are bad')\nt.prepare = bad",
    "step": (
        "import dudi.training.trainer as t\nreal = t.DistillationTrainer._micro_batch\n"
        "def bad(self, *rest):\n"
        "    if self.state.global_step == 1: raise DudiError('these rows are bad')\n"
        "    return real(self, *rest)\n"
        "t.DistillationTrainer._micro_batch = bad"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
@pytest.mark.parametrize("place", PATCHES)
def test_one_process_that_fails_stops_all(place: str, mode: str, tmp_path: Path) -> None:
    """Only the second process fails, before or within training: one line, exit status 2, nobody waits for it."""
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(
        "import os\nif os.environ.get('RANK') == '1':\n    from dudi.errors import DudiError\n"
        + "".join(f"    {line}\n" for line in PATCHES[place].splitlines())
    )
    recipe = runs.recipe(tmp_path, {"name": "sft"}, output="run", training=SHORT)
    started = time.monotonic()
    status, _, err = dudi(written(tmp_path, recipe), "--launch", mode, "--nproc", "2", path=patch, timeout=900)
    assert status == 2, err[-4000:]
    agreed = place == "data"  # what one finds while all prepare is everyone's, and nothing is written
    assert err.splitlines()[-1] == ("dudi: these rows are bad" if agreed else "dudi: process 1: these rows are bad")
    assert (tmp_path / "run").exists() != agreed
    assert time.monotonic() - started < 600, "gloo's own patience is half an hour"


@pytest.mark.slow
def test_an_error_of_all_is_shown_once(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "sft"}, output="run", training=SHORT)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("here")
    status, _, err = dudi(written(tmp_path, recipe), "--launch", "ddp", "--nproc", "2")
    assert status == 2
    assert err.count("is occupied") == 1 and err.splitlines()[-1].startswith("dudi: output folder"), err[-2000:]


def test_nproc_alone(tmp_path: Path) -> None:
    recipe = runs.recipe(tmp_path, {"name": "sft"})
    status, _, err = dudi(written(tmp_path, recipe), "--nproc", "2")
    assert status == 2 and err == (
        "dudi: --nproc says how many processes --launch starts: give --launch ddp or fsdp2 too\n"
    )

"""Several processes for one run: `dudi run RECIPE --launch MODE --nproc N`, and how a process finds out its mode.

The wrapper starts torch's own launcher with the environment that `accelerate launch --config_file MODE.yaml` would set
(the files in `launch_configs/`), so that both ways, and several machines, end in the same place: `launched`.

    ddp      every process holds all weights, gradients are averaged
    fsdp2    the student's weights, gradients and optimizer state are spread over the processes
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from dudi.errors import DudiError

if TYPE_CHECKING:
    from dudi.recipe.schema import Recipe

CONFIGS = Path(__file__).parent / "launch_configs"
ERRORS = "DUDI_ERRORS"
"""Names the folder in which a started process leaves its error's line, so that it is shown once and not N times."""
LAUNCHER = "DUDI_LAUNCHER"
"""Names the pid of the wrapper that started a process."""
WATCHED = 1.0
"""Seconds between looks at the launcher, where the kernel has no signal for its death."""
STOPPED = 143
"""The exit status after SIGTERM or SIGUSR1: that of `dudi.training.faults.Preempted`, which needs torch."""


class Launch(Enum):
    """How the processes of a run share the work."""

    DDP = "ddp"
    FSDP2 = "fsdp2"

    @property
    def config(self) -> Path:
        """The file for `accelerate launch --config_file`."""
        return CONFIGS / f"{self.value}.yaml"

    def environment(self) -> dict[str, str]:
        """What tells a process its mode: the same variables that `accelerate launch` sets."""
        return {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if self is Launch.FSDP2 else {}


@cache
def launched() -> Launch | None:
    """The mode that this process was started in, by whichever launcher; None: it is alone.

    Under FSDP2 Accelerate hears no more of it: the student is sharded as it is loaded, and must not be wrapped again.
    """
    mode = mode_of(os.environ)
    if mode is Launch.FSDP2:
        os.environ["ACCELERATE_USE_FSDP"] = "false"
    return mode


def mode_of(environment: Mapping[str, str]) -> Launch | None:
    """The mode that a process's environment tells. Raises `DudiError` for one that is not supported."""
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("y", "yes", "t", "true", "on", "1"):
        raise DudiError(
            "DeepSpeed is not supported, and ACCELERATE_USE_DEEPSPEED is set: use fsdp2, which spreads the same things"
            f" (--launch fsdp2, or accelerate with {Launch.FSDP2.config})"
        )
    if "WORLD_SIZE" not in environment:
        return None
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        version = environment.get("FSDP_VERSION", "1")
        if version != "2":
            raise DudiError(f"FSDP version {version} is not supported: set fsdp_version: 2 (see {Launch.FSDP2.config})")
        return Launch.FSDP2
    return Launch.DDP


def check_launch(recipe: Recipe, processes: int, mode: Launch | None = None) -> None:
    """Refuse, with `DudiError`, what several processes cannot do, before anything is written."""
    from dudi.recipe.stages import TEACHER, Generate, plan  # not with the command's help: it reads the schema

    if recipe.adapter is not None and recipe.adapter.quantization is not None and mode is Launch.FSDP2:
        raise DudiError(
            "adapter.quantization: not under fsdp2, which spreads weights as they are: use ddp, or leave the key out"
        )
    here = recipe.rollouts.server is None
    written = [s.name for s in plan(recipe) if here and isinstance(s, Generate) and s.writer == TEACHER]
    if written and recipe.models.teacher_sharding == "shard" and processes > 1:
        raise DudiError(
            f"models.teacher_sharding = 'shard': a sharded teacher cannot write answers, as stage {written[0]!r} needs"
            " them; use 'replicate'"
        )


def launch(mode: Launch, processes: int, arguments: Sequence[str]) -> int:
    """Start `dudi ARGUMENTS` in so many processes on this machine, and wait; returns the exit status.

    0 when all went well, that of a `DudiError` in any of them (its line is printed once), 143 after SIGTERM or SIGUSR1
    as without a launcher, 130 after Ctrl-C, else 1. One process that fails makes torch's launcher stop the others.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # one line of ours, no table of tracebacks
    single = ["--nproc-per-node", str(processes), "--standalone", "--local-addr", "127.0.0.1"]
    ours = ["--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT"]  # the others go through `_passing_on`
    signals: list[int] = []
    with tempfile.TemporaryDirectory(prefix="dudi-launch-") as errors:
        os.environ |= mode.environment() | {ERRORS: errors, LAUNCHER: str(os.getpid())}
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine, whose own name may not resolve
        try:
            with _passing_on(signals):
                torchrun.run(torchrun.parse_args([*single, *ours, "--module", "dudi", *arguments]))
        except ChildFailedError as error:
            status = _show(Path(errors))
            if status is None and signals:
                print(f"dudi: {stopped(sys.argv[1:])}", file=sys.stderr)
                return STOPPED
            if status is None:
                rank, failure = error.get_first_failure()
                print(f"dudi: process {rank} failed with exit status {failure.exitcode}; see above", file=sys.stderr)
            return status or 1
        except SignalException as signalled:
            if _show(Path(errors)) is None:
                print(f"dudi: {stopped(sys.argv[1:])}", file=sys.stderr)
            return 128 + int(signalled.sigval)
    return 0


def stopped(arguments: Sequence[str]) -> str:
    """What is said after Ctrl-C: for a run, the command that goes on."""
    if arguments[:1] != ["run"]:
        return "stopped"
    more = [] if "--resume" in arguments else ["--resume"]
    return f"stopped; to go on: {shlex.join(['dudi', *arguments, *more])}"


@contextmanager
def _passing_on(came: list[int]) -> Iterator[None]:
    """SIGTERM and SIGUSR1 are passed to the started processes, which save and end by themselves; `came` notes them.

    torch's launcher would kill them 30 seconds after SIGTERM, in the middle of a long step, and passes no SIGUSR1 on.
    One that comes before any process was started ends the wrapper.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        started = psutil.Process().children()
        if not started:
            raise SystemExit(STOPPED)
        for process in started:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _show(folder: Path) -> int | None:
    """Print each line that processes left, once; their exit status, or None where none left one."""
    found: dict[str, int] = {}
    for file in sorted(folder.iterdir(), key=lambda file: int(file.name)):
        entry = json.loads(file.read_text(encoding="utf-8"))
        if entry["line"] not in found:
            print("dudi:" + (f" process {file.name}:" if file.name != "0" else ""), entry["line"], file=sys.stderr)
        found[entry["line"]] = entry["status"]
    return max(found.values(), default=None)


def end_with_launcher() -> None:
    """A started process ends when its launcher does, however that ends: workers without one would train on, unseen,
    beside the run that is started in their place. Nothing is saved: SIGTERM to the launcher does that.
    """
    if "RANK" not in os.environ:
        return
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))  # torchrun and others do not say who they are
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(launcher,), daemon=True, name="launcher").start()
    if os.getppid() != launcher:  # it died before this was asked for
        os.kill(os.getpid(), signal.SIGKILL)


_PR_SET_PDEATHSIG = 1


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(WATCHED)
    os.kill(os.getpid(), signal.SIGKILL)


def hand_over(line: str, status: int) -> bool:
    """Leave an error's line to the wrapper that started this process; False where there is none."""
    folder = os.environ.get(ERRORS)
    if folder is None or "RANK" not in os.environ or not Path(folder).is_dir():
        return False
    (Path(folder) / os.environ["RANK"]).write_text(json.dumps({"line": line, "status": status}), encoding="utf-8")
    return True


def processes_here(wanted: int | None, gpus: int) -> int:
    """How many processes to start: as told, else one for each GPU. Raises `DudiError` where that is none."""
    if wanted is not None and gpus and wanted > gpus:
        raise DudiError(f"--nproc {wanted}: only {gpus} GPUs are visible, and each process needs its own")
    if wanted is None and not gpus:
        raise DudiError("--launch: no GPU is visible; say with --nproc how many processes to start on the CPU")
    return wanted or gpus


def launch_run(
    mode: Launch,
    wanted: int | None,
    name: str,
    recipe: Recipe,
    overrides: Sequence[str],
    resume: bool,
    rehearsal: bool = True,
    profile: Path | None = None,
) -> int:
    """`dudi run NAME` with these overrides, in several processes; returns the exit status.

    Raises `DudiError` for what can be known beforehand.
    """
    if "WORLD_SIZE" in os.environ:
        raise DudiError("--launch: this process was itself started by a launcher; use one or the other")
    import torch

    processes = processes_here(wanted, torch.cuda.device_count())
    check_launch(recipe, processes, mode)
    settings = [argument for item in overrides for argument in ("--set", item)]
    flags = [*(["--resume"] if resume else []), *([] if rehearsal else ["--no-rehearsal"])]
    flags += [] if profile is None else ["--profile", str(profile)]
    return launch(mode, processes, ["run", name, *settings, *flags])

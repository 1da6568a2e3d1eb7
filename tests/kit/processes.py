"""Processes of their own: the workers of `kit.workers`, alone or two of them under torch's launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """For a process of its own: the kit importable, nothing left of a launcher."""
    left_out = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    env = {k: v for k, v in os.environ.items() if k not in left_out}
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if Path("/sys/class/net/lo").exists():
        env["GLOO_SOCKET_IFNAME"] = "lo"  # the host's own name may not resolve
    return env


def start(worker: str, *arguments: str, launcher: Sequence[str] = (), timeout: float = 240) -> tuple[int, str]:
    """Run a module of `kit.workers`; (exit status, what it wrote)."""
    command = [sys.executable, *launcher, "-m", f"kit.workers.{worker}", *arguments]
    done = subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    return done.returncode, done.stdout


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_two(worker: str, folder: Path, *arguments: str) -> Path:
    """Run a worker in two processes; what they left."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(free_port())]
    status, text = start(worker, str(folder), *arguments, launcher=launcher, timeout=1800)
    assert status == 0, text[-6000:]
    return folder

"""How a step of ours grows: CPU seconds as tokens, rows, vocabulary or processes double.

    python benchmarks/growth.py
    python benchmarks/growth.py --rounds 5 --only vocabulary

One on-policy reverse-KL step (see step.py) with V = 8,000, hidden 128, 8 rows, 64 + 64 tokens; one of these doubles,
and doubles again. A factor below 2 says that what is fixed is shared by more. Processes are of `dudi run --launch ddp`
on the CPU: seconds of all of them together, less those of a run of one step, for the same batch; twice the seconds
would say that a second process only repeats what the first does.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from step import Shape, fresh, medians

BASE = Shape(8_000, 128)
GROWTH = {
    "tokens": [replace(BASE, prompt=64 * k, new=64 * k) for k in (1, 2, 4)],
    "rows": [replace(BASE, batch=8 * k) for k in (1, 2, 4)],
    "vocabulary": [replace(BASE, vocab=8_000 * k) for k in (1, 2, 4)],
}
PROCESSES = (1, 2)
MODELS = Path(__file__).resolve().parents[1] / "scripts" / "make_models.py"


def launched(processes: int, steps: int, folder: Path) -> float:
    """CPU seconds of the tiny recipe in so many processes, on the models in the folder."""
    command = [
        sys.executable,
        "-m",
        "dudi",
        "run",
        "tiny",
        "--no-rehearsal",
        "--launch",
        "ddp",
        "--nproc",
        str(processes),
    ]
    models = [f'models.{name}="{folder / "models" / name}"' for name in ("student", "teacher")]
    for value in (*models, f"training.max_steps={steps}"):
        command += ["--set", value]
    output = tempfile.mkdtemp(dir=folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run([*command, "--output", f"{output}/run"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def run(command: Sequence[str]) -> None:
    """A command, whose output shows where it fails."""
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-800:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a round")
    parser.add_argument("--only", nargs="+", choices=[*GROWTH, "processes"], default=[*GROWTH, "processes"])
    args = parser.parse_args(arguments)
    for what in args.only:
        if what != "processes":
            print(f"| {what} | CPU s a step | factor |\n|---|---|---|")
            found: dict[Shape, list[dict[str, float]]] = {shape: [] for shape in GROWTH[what]}
            for _ in range(args.rounds):
                for shape in found:
                    found[shape] += fresh("dudi-on-policy", shape, args.steps, 1, 1)
            seconds = {str(shape): medians(steps)["cpu"] for shape, steps in found.items()}
        else:
            print("| processes | CPU s a step, all together | factor |\n|---|---|---|")
            taken: dict[int, list[float]] = {count: [] for count in PROCESSES}
            with tempfile.TemporaryDirectory() as name:
                run([sys.executable, str(MODELS), "--out", f"{name}/models"])
                for _ in range(args.rounds):
                    for count in PROCESSES:
                        runs = [launched(count, steps, Path(name)) for steps in (1, 11)]
                        taken[count].append((runs[1] - runs[0]) / 10)
            seconds = {str(count): statistics.median(each) for count, each in taken.items()}
        before = None
        for label, cpu in seconds.items():
            print(f"| {label} | {cpu:.3f} | {'-' if before is None else f'{cpu / before:.2f}'} |")
            before = cpu
        print()


if __name__ == "__main__":
    main()

"""A whole training of the lab's DuDi here and at an earlier commit: CPU seconds, in turns, as a ratio.

    python benchmarks/baseline.py                              # against e8ff203, five rounds
    python benchmarks/baseline.py --commit HEAD~20 --rounds 3 --set training.cache='"memory"'

Each commit trains with its own code, from a work tree in a temporary folder, both on this commit's lab and by the same
settings. Both start from one cold start (SFT, made once by this commit) and train three epochs of 30 steps, rollouts
and the first fill of a cache included. A training's seconds are those of the whole command, less those of the same
command with one step.
--set: for this commit only.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS, STEPS, COLD = 44, 90, 400
"""Rows of each of the seven languages, ten of them held out; 30 steps of 8 rows an epoch. Steps of the cold start."""


class Tree:
    """The source of a commit, and the lab that it trains on."""

    def __init__(self, source: Path, lab: Path, threads: int) -> None:
        self.lab = lab
        quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.env = {**os.environ, **quiet, "PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}

    def dudi(self, *arguments: str) -> float:
        """CPU seconds of a command, its children included."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "dudi", *arguments], env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"dudi {' '.join(arguments)}: {(done.stdout + done.stderr).strip()[-800:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    def train(self, recipe: str, output: Path, *values: str) -> float:
        """CPU seconds of `dudi run` on this lab."""
        models = [f'models.{name}="{self.lab / folder}"' for name, folder in LAB.items()]
        settings = [f'data.source="{self.lab / "data"}"', *models, *values]
        return self.dudi(
            "run", recipe, *(part for value in settings for part in ("--set", value)), "--output", str(output)
        )


LAB = {"student": "student-small", "teacher": "teacher"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="e8ff203")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cold", type=int, default=COLD, help="steps of the cold start that both start from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for this commit only")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["git", "-C", str(ROOT), "worktree", "prune"], check=True)
        old = folder / "old"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(old), args.commit],
            check=True,
            capture_output=True,
        )
        try:
            trees = {
                args.commit: (Tree(old / "src", folder / "lab", args.threads), ()),
                "here": (Tree(ROOT / "src", folder / "lab", args.threads), tuple(args.set)),
            }
            trees["here"][0].dudi("lab", "export", str(folder / "lab"))
            cold = folder / "cold"
            trees["here"][0].train("lab/sft", cold, f"training.max_steps={args.cold}")
            compare(trees, next(cold.glob("*-sft/model")), folder, args.rounds, args.steps)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(old)], check=True)


def compare(trees: dict[str, tuple[Tree, tuple[str, ...]]], cold: Path, folder: Path, rounds: int, steps: int) -> None:
    """Trainings in turns, and a table of their medians."""
    seconds: dict[str, list[float]] = {label: [] for label in trees}
    for number in range(rounds):
        for label, (tree, values) in trees.items():
            took = [
                tree.train(
                    "lab/dudi",
                    folder / f"{number}-{label}-{count}",
                    f'cold_start.checkpoint="{cold}"',
                    f"data.rows_per_language={ROWS}",
                    f"training.max_steps={count}",
                    *values,
                )
                for count in (1, steps)
            ]
            seconds[label].append((took[1] - took[0]) / (steps - 1))
            print(f"{label} {seconds[label][-1]:.3f}", file=sys.stderr, flush=True)
    here = statistics.median(seconds["here"])
    print(f"The lab's DuDi, {steps} steps in three epochs, medians of {rounds}\n")
    print("| | CPU s a step | ratio |\n|---|---|---|")
    for label, found in seconds.items():
        middle = statistics.median(found)
        print(f"| {label} | {middle:.3f} | {middle / here:.2f} |")


if __name__ == "__main__":
    main()

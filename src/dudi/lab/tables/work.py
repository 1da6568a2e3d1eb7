"""The process that makes one cell: `dudi run` and `dudi eval` in one, so that torch is loaded once.

FOLDER/recipe.toml    what to train; by hand: dudi run FOLDER/recipe.toml --output ...
FOLDER/run/           its run
FOLDER/eval/          the evaluation of its result
FOLDER/cost.json      written last: the seconds of the evaluation
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path

from dudi.errors import DudiError
from dudi.files import write_text

RECIPE, RUN, EVAL, COST = "recipe.toml", "run", "eval", "cost.json"


def work(folder: Path, model: Path, benchmark: Path) -> None:
    """Train what the recipe says, if there is one, or go on with it; then evaluate. What is done is not done again."""
    from dudi.evals.evaluate import evaluate
    from dudi.recipe.read import load_recipe
    from dudi.run.pipeline import run

    if (folder / RECIPE).exists() and not trained(folder):
        begun = (folder / RUN / "recipe.toml").exists()
        run(load_recipe(folder / RECIPE), resume=begun)
    began = time.monotonic()
    evaluate(str(model), benchmark, folder / EVAL)
    write_text(folder / COST, json.dumps({"evaluation": round(time.monotonic() - began, 1)}))


def trained(folder: Path) -> bool:
    """Whether a cell's run is complete."""
    return (folder / RUN / "summary.json").exists()


def seconds_of(run: Path) -> dict[str, float]:
    """What each stage of a run took."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {stage: round(sum(found["seconds"].values()), 1) for stage, found in summary["phases"].items()}


def end_with(parent: int) -> None:
    """End this process when its parent has died: a grid that is killed leaves nobody behind who holds its folders."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    """`python -m dudi.lab.tables.work FOLDER MODEL BENCHMARK PARENT`."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "model", "benchmark"):
        parser.add_argument(name, type=Path)
    parser.add_argument("parent", type=int)
    given = parser.parse_args()
    end_with(given.parent)
    try:
        work(given.folder, given.model, given.benchmark)
    except DudiError as error:
        print(f"dudi: {error}", flush=True)
        return error.status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`dudi plan --measure` beside the run that follows, on a CPU: two sizes of models, three profiles of lengths.

    python benchmarks/plan.py                            # all six; some minutes
    python benchmarks/plan.py --size small --profile mixed --steps 20

DuDi from a cold start on models of random weights (their rollouts run into the limit), made inside, with the texts that
ship with the package, cut to length; the limits leave rows out and cut answers. The plan and the run are processes of
their own, on one thread. CPU seconds, without the imports: of the plan those of `measured`, of the run all others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
VOCAB = 2000
SIZES = {"small": (192, 4), "large": (384, 6)}
"""Hidden size and layers of the student; the teacher is twice as deep."""
PROFILES = {"short": ((16, 32), (8, 24)), "long": ((64, 80), (40, 56)), "mixed": ((12, 120), (6, 72))}
"""Fewest and most tokens of text in x, and in y; each as likely as any other."""
ROWS, LANGUAGES = 48, ("id", "vi", "th")
STEP_PHASES = ("rollout", "teacher", "reference", "student", "backward", "optimizer")


def build(folder: Path, size: str, profile: str, steps: int) -> None:
    """Models, rows and a recipe."""
    sys.path.insert(0, str(TESTS))
    import torch
    from kit import models, rows

    hidden, layers = SIZES[size]
    tokenizer = models.tokenizer(VOCAB)
    for name, depth in (("student", layers), ("teacher", 2 * layers)):
        made = models.model(1, hidden=hidden, layers=depth, rows=VOCAB, dtype=torch.float32, sharpness=1.0)
        models.save(folder / name, made, tokenizer)
    drawn, lines = random.Random(0), []
    texts = {l: " ".join(e.y for e in rows.builtin() if e.l == l) for l in LANGUAGES}
    ids = {l: tokenizer.encode(text, add_special_tokens=False) for l, text in texts.items()}
    for number in range(ROWS):
        l = LANGUAGES[number % len(LANGUAGES)]
        x, y = (_text(tokenizer, ids[l], drawn.randint(*ends), drawn) for ends in PROFILES[profile])
        turns = [{"role": "user", "content": f"{number} {x}"}, {"role": "assistant", "content": y}]
        lines.append(json.dumps({"messages": turns, "language": l}, ensure_ascii=False))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    most_x, most_y = (ends[1] for ends in PROFILES[profile])
    training = f"batch = 4\nmicro_batch = 2\nmax_steps = {steps}\nlr = 1e-5\nsave_every = 10\n"
    (folder / "r.toml").write_text(
        f"""
name = "plan"
output = "{folder}/run"
[method]
name = "dudi"
[models]
student = "{folder}/student"
teacher = "{folder}/teacher"
precision = "float32"
[data]
source = "{folder}/rows.jsonl"
eval_rows_per_language = 2
[limits]
prompt = {most_x + 8}
verbalizer = 600
total = {most_x + 8 + most_y // 2}
rollout = {most_y // 2}
teacher_prompt = 2000
[training]
{training}[cold_start.training]
{training}""",
        encoding="utf-8",
    )


def _text(tokenizer: Any, ids: Sequence[int], length: int, drawn: random.Random) -> str:
    """So many tokens of a text, whole characters."""
    start = drawn.randrange(len(ids) - length)
    return str(tokenizer.decode(ids[start : start + length])).strip("\ufffd ")


def run(folder: Path) -> None:
    """The run; prints its CPU seconds."""
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401 - an import, which the plan has had before it measures

    import dudi.run.plan.plan  # noqa: F401
    from dudi.recipe.read import load_recipe
    from dudi.run import pipeline

    recipe = load_recipe(str(folder / "r.toml"))
    began = time.process_time()
    pipeline.run(recipe, say=lambda _: None)
    print(time.process_time() - began)


def fresh(*command: str) -> str:
    """What a command prints, on one thread."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def peak(run: Path) -> int:
    """Bytes at the peak of all steps."""
    found = [json.loads(file.read_text(encoding="utf-8"))["memory"] for file in run.glob("*/phases.json")]
    return max(one[phase] for one in found for phase in STEP_PHASES if phase in one)


def row(size: str, profile: str, steps: int) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fresh(__file__, "--build", name, "--size", size, "--profile", profile, "--steps", str(steps))
        plan = json.loads(fresh("-m", "dudi", "plan", str(folder / "r.toml"), "--measure", "--json", "-"))
        actual = float(fresh(__file__, "--run", name).splitlines()[-1])
        lengths = json.loads((folder / "run" / "lengths.json").read_text(encoding="utf-8"))
        there = peak(folder / "run")
    cpu = plan["measured"]["cpu"]
    planned = max(stage["peak"] for stage in plan["stages"])
    tried = max(stage["peak"] for stage in plan["measured"]["stages"])
    own = next(item["bytes"] for item in plan["stages"][0]["memory"] if item["name"].startswith("this process"))
    cut = sum(one["left_out"] + one["cut"] for one in lengths.values())
    same = f"{cut}, equal" if plan["lengths"] == lengths else f"{cut}, DIFFER"
    cells = [
        f"{size}, {profile}",
        f"{cpu['expected']:.1f} ({cpu['low']:.1f} to {cpu['high']:.1f})",
        f"{actual:.1f}",
        f"{cpu['expected'] / actual - 1:+.0%}",
        *(f"{size / 1e6:,.0f}" for size in (own, planned, tried, there)),
        f"{planned / there - 1:+.0%}",
        f"{(planned - own) / (there - own) - 1:+.0%}",
        same,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--profile", choices=PROFILES, nargs="+", default=list(PROFILES))
    parser.add_argument("--steps", type=int, default=10, help="of each of the two trainings")
    parser.add_argument("--build", type=Path, metavar="FOLDER", help="make models, rows and recipe of one shape there")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run that recipe, print its CPU seconds")
    given = parser.parse_args()
    if given.build is not None:
        build(given.build, given.size[0], given.profile[0], given.steps)
        return
    if given.run is not None:
        run(given.run)
        return
    print(
        "| size, lengths | measured, CPU s | run, CPU s | | process, MB | planned peak | measured peak | run's peak"
        " | planned / run | without the process | rows left out or cut |"
    )
    print("|" + "---|" * 11, flush=True)
    for size, profile in itertools.product(given.size, given.profile):
        print(row(size, profile, given.steps), flush=True)


if __name__ == "__main__":
    main()

"""What `training.cache` saves: CPU seconds of a step from the second epoch on, with it and without.

    python benchmarks/cache.py                           # three methods, three rounds
    python benchmarks/cache.py --rounds 5 --method dudi

The models and rows of `step.py`: V = 2,000, student hidden 128, teacher twice as wide and deep; 8 rows, 64 + 64 tokens.
Each case trains for four epochs of two steps in a process of its own, the cases take turns; medians over the steps of
epochs 2 to 4 of all rounds. `fill` is what reading all rows took before the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import step as common

VOCAB, HIDDEN = 2000, 128
EPOCHS, STEPS_AN_EPOCH = 4, 2
CACHES = ("off", "memory", "disk")
METHODS: dict[str, dict[str, Any]] = {
    "gkd": {"name": "gkd", "lam": 0.0, "divergence": "reverse_kl"},
    "spin": {"name": "spin"},
    "dudi": {"name": "dudi"},
}
SAID = {"gkd": "reverse KL on y alone", "spin": "SPIN, y' stored", "dudi": "DuDi"}


def measure(method: str, cache: str) -> dict[str, Any]:
    """Seconds by phase of each step from the second epoch on, and those of the filling, in this process."""
    import torch

    from dudi.example import Example, Message
    from dudi.methods import build_method
    from dudi.recipe.schema import Limits, Training
    from dudi.rollouts import Rollout, Sampling
    from dudi.rollouts.local import LocalEngine
    from dudi.text.chat import Chat
    from dudi.text.verbalizer import Verbalizer
    from dudi.training.trainer import DistillationTrainer, Job
    from dudi.training.window import WindowBuilder, encode_rows

    torch.set_num_threads(1)
    chat, new = Chat(common.make_tokenizer(VOCAB), None, {}), common.NEW
    limits = Limits(prompt=common.PROMPT, verbalizer=400, total=common.PROMPT + new, rollout=new)
    rows = common.make_rows(VOCAB, common.BATCH * STEPS_AN_EPOCH)
    examples = [Example((Message("user", x),), y, "id", str(k)) for k, (x, y) in enumerate(rows)]
    encoded = encode_rows(examples, chat, limits).rows
    stored = {row.index: Rollout(row.y, True) for row in encoded}
    sampler = LocalEngine(Sampling((), chat.pad, chat.vocab, 1.0))  # no stop: always as many tokens
    builder = WindowBuilder(chat, Verbalizer(("id", "vi"), 0), limits, sampler, 0, stored)
    made = build_method(METHODS[method])
    clock, base = common.Clock(), common.make_model(VOCAB, HIDDEN, common.LAYERS, 1)
    callback, found = common.step_times(clock, STEPS_AN_EPOCH)
    teacher = common.make_model(VOCAB, 2 * HIDDEN, 2 * common.LAYERS, 2).requires_grad_(False).eval()
    reference = common.make_model(VOCAB, HIDDEN, common.LAYERS, 1).requires_grad_(False).eval()
    job = Job(
        method=made,
        student=base,
        teacher=teacher if made.judged_by_larger else None,
        reference=reference if made.needs_reference else None,
        builder=builder,
        eval_builder=builder,
        rows=encoded,
        eval_rows=[],
        languages=("id",),
        training=Training(batch=common.BATCH, lr=2e-5, epochs=EPOCHS, log_every=1, overlap_every=0, cache=cache),
        seed=0,
        autocast=False,
        folder=Path(tempfile.mkdtemp()),
    )
    trainer = DistillationTrainer(job, [callback])
    began = time.process_time()
    trainer._fill_cache()
    filled = time.process_time() - began
    trainer._phase = clock  # type: ignore[method-assign,assignment]  # CPU seconds in place of wall-clock ones
    trainer.train()
    assert len(found) == (EPOCHS - 1) * STEPS_AN_EPOCH
    return {"fill": filled, "steps": found}


def fresh(method: str, cache: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, __file__, "--method", method, "--cache", cache]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method}, {cache} failed: {done.stderr.strip()[-800:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(name: str, runs: Sequence[dict[str, Any]], base: float) -> tuple[str, float]:
    """A line of the table; the ratio is to the same method without a cache, in the same run."""
    steps = [step for one in runs for step in one["steps"]]
    cpu, frozen, rollout = (
        statistics.median(sum(step.get(phase, 0.0) for phase in phases) for step in steps)
        for phases in (("cpu",), ("teacher", "reference"), ("rollout",))
    )
    fill = statistics.median(one["fill"] for one in runs)
    ratio = cpu / (base or cpu)
    return f"| {name} | {cpu:.3f} | {frozen:.3f} | {rollout:.3f} | {fill:.2f} | {ratio:.2f} |", base or cpu


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, help="this one only")
    parser.add_argument("--cache", choices=CACHES, help="one case in this process, as a line of JSON")
    args = parser.parse_args(arguments)
    if args.cache:
        print(json.dumps(measure(args.method, args.cache)))
        return
    print(
        "| method, cache | CPU s a step | teacher and reference | rollout | fill | ratio |\n|---|---|---|---|---|---|"
    )
    for method in [args.method] if args.method else METHODS:
        found: dict[str, list[dict[str, Any]]] = {cache: [] for cache in CACHES}
        for _ in range(args.rounds):
            for cache in CACHES:
                found[cache].append(fresh(method, cache))
        base = 0.0
        for cache, runs in found.items():
            line, base = row(f"{SAID[method]}, {cache}", runs, base)
            print(line, flush=True)


if __name__ == "__main__":
    main()

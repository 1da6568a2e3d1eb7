"""A lab of seconds a cell, as `dudi lab export` lays one out: models that know nothing, few rows, a dozen questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kit
from dudi.example import Message
from dudi.lab.tables.cells import hashed
from dudi.lab.tables.grid import read_grid
from dudi.lab.tables.lines import Line, Name, Overlap
from kit import evals

SETS = (
    'data.format="chat"',
    'data.languages=["id", "th"]',
    "data.eval_rows_per_language=0",
    "limits={prompt=300, verbalizer=200, total=500, rollout=4, teacher_prompt=1500}",
    "training.max_steps=3",
    "training.batch=4",
    "training.micro_batch=4",
    "training.warmup_steps=0",
    "training.log_every=1",
    "training.overlap_every=1",
    "cold_start.training.max_steps=2",
    "cold_start.training.batch=4",
)
PLAN = {
    "student-a": {"family": "qwen2", "teacher": False},
    "teacher-a": {"family": "qwen2", "teacher": True},
    "student-b": {"family": "llama", "teacher": False},
    "teacher-b": {"family": "llama", "teacher": True},
}


def write_lab(folder: Path) -> Path:
    """The exported lab."""
    for seed, (name, plan) in enumerate(PLAN.items()):
        made = kit.model(seed, 32 if plan["teacher"] else 16, 1, kind=str(plan["family"]), dtype=torch.float32)
        kit.save(folder / name, made, kit.tokenizer())
    rows = [
        {"language": e.l, "messages": [m.as_dict() for m in (*e.x, Message("assistant", e.y))]}
        for e in kit.builtin()
        if e.l in ("id", "th")
    ]
    (folder / "data").mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:12] + rows[-12:])
    (folder / "data" / "rows.jsonl").write_text(text, encoding="utf-8")
    evals.write(folder / "benchmark")
    (folder / "lab.json").write_text(json.dumps({"manifest": {"models": PLAN}}), encoding="utf-8")
    return folder


def line(cell: str, seed: int | None, score: float | None, **changes: Any) -> Line:
    """A line out of the air: this score everywhere, and as its overlap in percent."""
    languages: Mapping[str, float | None] = dict.fromkeys(("id", "vi", "th", "ta", "tl", "ms", "my"), score)
    competencies = dict.fromkeys(("nlu", "nlg", "nlr"), score)
    share = (score or 0.0) / 100
    fields: dict[str, Any] = {
        "average": score,
        "without_translation": score,
        "languages": languages,
        "languages_without_translation": languages,
        "competencies": competencies,
        "overlap": (Overlap(20, 10.0, share, {"id": share, "th": share}), Overlap(40, 10.0, share, {"id": share})),
        "weights": "0" * 64,
        "seconds": {"1-dudi": 60.0, "evaluation": 30.0},
        "settings": {},
        "environment": {"date": "2026-01-01"},
        **changes,
    }
    fields.setdefault("key", hashed({"settings": fields["settings"], "seed": seed}))
    return Line(cell=cell, seed=seed, **fields)


HERE = ("qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-1b")
"""Pairs that a lab of three students has."""
PLACE = {"dudi": 40.0, "dudi-without-on-policy": 48.0, "gkd": 35.0, "sft": 30.0, "teacher": 90.0}
"""Averages; every other cell: 20."""


def grid_lines(seeds: int, noise: float = 0.05, change: Callable[[Line], Line] = lambda line: line) -> dict[Name, Line]:
    """Of all cells of these pairs."""
    generator, found = np.random.default_rng(5), {}
    for cell in read_grid().cells.values():
        if cell.pair in HERE:
            for seed in [None] if cell.recipe is None else range(seeds):
                score = PLACE.get(cell.name.partition("/")[2], 20.0) + noise * generator.standard_normal()
                made = change(line(cell.name, seed, float(score)))
                found[made.name] = made
    return found

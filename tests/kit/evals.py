"""A small benchmark folder made by hand, tiny models to ask, scores out of the air."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import kit
from dudi.evals.bench import Benchmark
from dudi.records import Description, Item, Task, TaskScore

DESCRIPTION: dict[str, Any] = {
    "name": "small",
    "version": 1,
    "competencies": ["nlu", "nlg", "rules"],
    "averaged": ["id", "th"],
    "translation": ["nlg"],
    "tasks": {
        "mood": {"competency": "nlu", "metric": "choice", "max_new_tokens": 6},
        "capital": {"competency": "nlu", "metric": "exact", "max_new_tokens": {"default": 5, "th": 7}},
        "to_english": {"competency": "nlg", "metric": "chrf", "max_new_tokens": 8},
        "list": {"competency": "rules", "metric": "constraints", "max_new_tokens": 9},
    },
}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def item(name: str, task: str, language: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "task": task, "language": language, "messages": user(text), **fields}


def rows() -> list[dict[str, Any]]:
    """Items of every metric in id, th and en (en is shown only)."""
    letters, words = {"choices": ["A", "B"]}, {"choices": ["ดี", "ไม่ดี"]}
    long = "Hujan lagi, sedih sekali rasanya hari ini. A atau B?"
    among = ["kucing", "ikan", "ayam"]
    answer_in_english = item(
        "l2", "list", "th", "ตอบเป็นภาษาอังกฤษ", constraints={}, targets=["cat"], response_language="en"
    )
    answer_in_english["messages"].insert(0, {"role": "system", "content": "ตอบสั้น"})
    return [
        item("m1", "mood", "id", "Senang? A ya, B tidak.", targets=["A"], **letters),
        item("m2", "mood", "id", long, targets=["B"], **letters),
        item("m3", "mood", "th", "ดีใจไหม", targets=["ดี"], **words),
        item("m4", "mood", "th", "ฝนตกอีกแล้ว", targets=["ไม่ดี"], **words),
        item("c1", "capital", "id", "Ibu kota Prancis?", targets=["Paris", "kota Paris"]),
        item("c2", "capital", "th", "เมืองหลวงของไทยคืออะไร", targets=["กรุงเทพ"]),
        item("c3", "capital", "en", "Capital of France?", targets=["Paris"]),
        item("t1", "to_english", "id", "Terjemahkan: kucing", targets=["the cat eats fish"], response_language="en"),
        item("t2", "to_english", "id", "Terjemahkan: rumah", targets=["house", "a house"], response_language="en"),
        item("t3", "to_english", "th", "แปล: บ้าน", targets=["house"], response_language="en"),
        item("l1", "list", "id", "Dua hewan.", constraints={"count": 2, "distinct": True, "among": among}),
        answer_in_english,
    ]


def write(
    folder: Path,
    description: Mapping[str, Any] | None = None,
    items: Sequence[Mapping[str, Any]] | None = None,
    words: Mapping[str, str] | None = None,
) -> Path:
    """The folder, as it is written by hand."""
    (folder / "items").mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(json.dumps(description or DESCRIPTION), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in (rows() if items is None else items)]
    (folder / "items" / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for code, text in (words or {}).items():
        (folder / "words").mkdir(exist_ok=True)
        (folder / "words" / f"{code}.txt").write_text(text, encoding="utf-8")
    return folder


def save_model(folder: Path, seed: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> str:
    """A tiny model folder; the head is padded beyond the vocabulary."""
    return kit.save(folder, kit.model(seed, rows=kit.VOCAB + 6, dtype=dtype, **changes), kit.tokenizer())


def bench(tasks: Mapping[str, tuple[str, str | None, Sequence[str]]], **changes: Any) -> Benchmark:
    """A benchmark in memory: task -> (competency, group, languages that have it). Metric exact, one item each."""
    competencies = tuple(dict.fromkeys(c for c, _, _ in tasks.values()))
    languages = tuple(sorted({l for _, _, ls in tasks.values() for l in ls}))
    made = {name: Task(competency=c, metric="exact", max_new_tokens=4, group=g) for name, (c, g, _) in tasks.items()}
    fields: dict[str, Any] = {"competencies": competencies, "averaged": languages, "tasks": made, **changes}
    items = tuple(
        Item.model_validate_json(
            json.dumps({"id": f"{t}{l}", "task": t, "language": l, "messages": user("?"), "targets": ["x"]})
        )
        for t, (_, _, ls) in tasks.items()
        for l in ls
    )
    return Benchmark(Description(name="b", version=1, **fields), items, {}, "")


def score(b: Benchmark, task: str, language: str, value: float | None, seed: int = 0, **changes: Any) -> TaskScore:
    """A score; without a value: a task that failed."""
    fields: dict[str, Any] = {
        "model": "m",
        "benchmark": b.name,
        "competency": b.tasks[task].competency,
        "metric": "exact",
        "n": 1,
        "error": None if value is not None else "it broke",
        **changes,
    }
    return TaskScore(task=task, language=language, seed=seed, raw=value, score=value, **fields)

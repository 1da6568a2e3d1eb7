"""Tiny models and data on disk, the recipe that reads them, and its run up to the first trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import dudi.loss.chunked
import dudi.models.load
import dudi.recipe.schema
import dudi.run.pipeline
import kit
from dudi.data.load import load_rows
from dudi.example import Message
from dudi.recipe.read import parse_recipe
from dudi.training.trainer import DistillationTrainer, Job


class World:
    """Tiny models and data on disk, and the recipe that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tok = kit.tokenizer()
        for name, seed, hidden in (("student", 1, 16), ("other", 3, 16), ("teacher", 2, 32), ("teacher2", 4, 32)):
            made = kit.model(seed, hidden, layers=1, dtype=torch.float32)
            kit.save(folder / name, made, tok)
        (folder / "chat.jinja").write_text(
            "{{ note }}" + kit.CHATML.replace("m['role']", "m['role'] | upper").replace("assistant", "ASSISTANT")
        )
        (folder / "templates").mkdir()
        text = (Path(dudi.__file__).parent / "text" / "templates" / "id.toml").read_text(encoding="utf-8")
        (folder / "templates" / "id.toml").write_text(text.replace("{language}", "~{language}~"), encoding="utf-8")
        rows = [
            {"language": e.l, "messages": [m.as_dict() for m in (*e.x, Message("assistant", e.y))]}
            for e in kit.builtin()
        ]
        rows = [row for row in rows if row["language"] in ("id", "th")]
        self._write("data.jsonl", rows)
        self._write("few.jsonl", rows[3:9] + rows[-6:])
        self._write("broken.jsonl", [*rows, {"language": "id", "messages": []}])
        named = [{"role": "user", "name": "x", "content": "n"}, {"role": "assistant", "content": "a"}]
        self._write("named.jsonl", [*rows, {"language": "id", "messages": named}])
        pairs = [{"language": "id", "prompt": f"p {k}", "other": f"o {k}", "completion": "c"} for k in range(6)]
        self._write("pairs.jsonl", pairs)
        self._write("plain.jsonl", [{"messages": row["messages"]} for row in rows[:12]])
        self._write("splits/train.jsonl", rows[::2])
        self._write("splits/test.jsonl", rows[1::2])
        (folder / "sea").mkdir()
        both = [self._sea(k, row) for k, row in enumerate(r for r in rows if r["language"] == "id")]
        pq.write_table(pa.Table.from_pylist(both), folder / "sea" / "Indonesian.parquet")

    def _write(self, name: str, rows: list[Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def _sea(self, number: int, row: dict[str, Any]) -> dict[str, Any]:
        """A row in both formats, with another conversation in each; every third is of low quality."""
        return {
            **row,
            "conversations_id": f"id-{number}",
            "conversations": json.dumps(
                [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "a"}]
            ),
            "prompt_primary_language": "Indonesian",
            "prompt_primary_domain": "Food",
            "prompt_primary_task": "QA",
            "prompt_complexity": "Simple",
            "prompt_input_quality": "Poor" if number % 3 == 0 else "Excellent",
            "prompt_is_coherent": True,
            "prompt_is_natural": True,
            "prompt_sensitivity": "None",
        }

    def table(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The base recipe with changes by dotted key; paths that exist in the world are filled in. `data.sources` is of
        one table, in place of `data.source`."""
        table: dict[str, Any] = {
            "name": "base",
            "output": str(self.folder / "runs" / "{name}"),
            "method": {"name": "dudi"},
            "cold_start": {"method": {"name": "none"}},
            "models": {"student": "@student", "teacher": "@teacher"},
            "data": {"source": "@data.jsonl", "languages": ("id", "th")},
            "limits": {"prompt": 300, "verbalizer": 200, "total": 500, "rollout": 6, "teacher_prompt": 1500},
            "training": {
                "batch": 4,
                "micro_batch": 4,
                "max_steps": 2,
                "epochs": 2.0,
                "log_every": 1,
                "overlap_every": 0,
            },
        }
        for key, value in changes.items():
            *parts, last = key.split(".")
            place = table
            for part in parts:
                place = place.setdefault(part, {})
            place[last] = value
        if "sources" in table["data"]:
            del table["data"]["source"]
            table["data"]["sources"] = (self._paths(table["data"]["sources"]),)
        return self._paths(table)

    def _paths(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._paths(item) for key, item in value.items()}
        return str(self.folder / value[1:]) if isinstance(value, str) and value.startswith("@") else value

    def start(self, table: dict[str, Any]) -> tuple[Job, list[dict[str, Any]], Path]:
        """A run until its first trainer is made: the job, how models were loaded, the run's folder."""
        recipe = parse_recipe(table, "test")
        folder = Path(recipe.output.format(name=recipe.name))
        shutil.rmtree(folder, ignore_errors=True)
        jobs: list[Job] = []
        loads: list[dict[str, Any]] = []

        def stop(job: Job, *_: Any) -> Any:
            jobs.append(job)
            raise _Started

        def load(path: str, **kwargs: Any) -> Any:
            loads.append({"path": path, **kwargs})
            return real(path, **kwargs)

        real = dudi.models.load.AutoModelForCausalLM.from_pretrained
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dudi.run.pipeline, "DistillationTrainer", stop)
            patch.setattr(dudi.models.load, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=load))
            with pytest.raises(_Started):
                dudi.run.pipeline.run(recipe, say=lambda _: None)
        return jobs[0], loads, folder

    def revisions(self, table: dict[str, Any]) -> list[str | None]:
        """Which ones the hub is asked for, where the source is one of its data sets."""
        asked: list[str | None] = []
        folder = self.folder

        class Files:
            def listing(self, repo: str, revision: str | None) -> tuple[str, list[str]]:
                asked.append(revision)
                return "commit", ["few.jsonl"]

            def open(self, repo: str, revision: str, path: str) -> Any:
                return (folder / path).open("rb")

        for one in table["data"].get("sources", [table["data"]]):
            one["source"] = "owner/name"
        load_rows(parse_recipe(table, "test").data, 0, Files())
        return asked

    def train(self, table: dict[str, Any]) -> tuple[DistillationTrainer, Path]:
        """The first training, to its end."""
        made = DistillationTrainer(self.start(table)[0])
        made.job.folder.mkdir(parents=True, exist_ok=True)
        made.train()
        return made, made.job.folder


class _Started(Exception):
    pass

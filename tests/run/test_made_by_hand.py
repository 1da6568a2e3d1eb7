"""A run and an evaluation of rows, models and a benchmark that were made by hand: folders are read wherever they come
from, the lab's or anybody's."""

from __future__ import annotations

import json
from pathlib import Path

import kit
import pytest
import torch
from typer.testing import CliRunner

from dudi.cli import app

ROWS = [
    ("id", "Apa ibu kota Indonesia?", "Ibu kota Indonesia adalah Jakarta."),
    ("id", "Sebutkan dua warna.", "merah, biru"),
    ("id", "Berapa dua tambah dua?", "Dua tambah dua sama dengan empat."),
    ("th", "เมืองหลวงของไทยคืออะไร", "เมืองหลวงของไทยคือกรุงเทพฯ"),
    ("th", "แมวเป็นสัตว์ชนิดใด", "แมวเป็นสัตว์เลี้ยงลูกด้วยนม"),
    ("th", "สองบวกสองเท่ากับเท่าไร", "สี่"),
    ("vi", "Thủ đô của Việt Nam là gì?", "Thủ đô của Việt Nam là Hà Nội."),
    ("vi", "Hai cộng hai bằng mấy?", "Bốn."),
    ("vi", "Con mèo là động vật gì?", "Con mèo là động vật có vú."),
]
BENCHMARK = {
    "name": "by-hand",
    "version": 3,
    "competencies": ["facts"],
    "averaged": ["id", "th"],
    "tasks": {"capital": {"competency": "facts", "metric": "exact", "max_new_tokens": 4}},
}
ITEMS = [("id", "Ibu kota Prancis?", "Paris"), ("th", "เมืองหลวงของฝรั่งเศสคืออะไร", "ปารีส")]


def by_hand(folder: Path) -> None:
    """Rows, a benchmark and two models that have nothing to do with the lab."""
    for name, seed, hidden in (("student", 1, 32), ("teacher", 2, 64)):
        kit.save(folder / name, kit.model(seed, hidden=hidden, dtype=torch.float32), kit.tokenizer())
    rows = [
        {"language": l, "messages": [{"role": "user", "content": x}, {"role": "assistant", "content": y}]}
        for l, x, y in ROWS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    items = [
        {"id": l, "task": "capital", "language": l, "messages": [{"role": "user", "content": x}], "targets": [y]}
        for l, x, y in ITEMS
    ]
    (folder / "bench" / "items").mkdir(parents=True)
    (folder / "bench" / "benchmark.json").write_text(json.dumps(BENCHMARK), encoding="utf-8")
    (folder / "bench" / "items" / "all.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    (folder / "recipe.toml").write_text(
        f"""
name = "by-hand"
[method]
name = "dudi"
[models]
student = "{folder / "student"}"
teacher = "{folder / "teacher"}"
precision = "float32"
[data]
source = "{folder / "rows.jsonl"}"
format = "chat"
[limits]
prompt = 300
verbalizer = 300
total = 700
rollout = 8
teacher_prompt = 1500
[training]
lr = 1e-3
batch = 3
micro_batch = 3
max_steps = 2
[cold_start.training]
max_steps = 2
""",
        encoding="utf-8",
    )


@pytest.mark.slow
def test_a_run_and_an_evaluation_of_folders_made_by_hand(tmp_path: Path) -> None:
    by_hand(tmp_path)
    runner = CliRunner()
    run = tmp_path / "run"
    done = runner.invoke(app, ["run", str(tmp_path / "recipe.toml"), "--output", str(run)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert (run / "summary.json").exists()
    model = max(run.glob("*/model"))
    for folder in (tmp_path / "student", model):
        out = tmp_path / "eval" / folder.name
        bench = str(tmp_path / "bench")
        done = runner.invoke(app, ["eval", str(folder), "--benchmark", bench, "--output", str(out)])
        assert done.exit_code == 0, (done.output, done.exception)
        assert json.loads((out / "table.json").read_text(encoding="utf-8"))["benchmark"] == "by-hand"

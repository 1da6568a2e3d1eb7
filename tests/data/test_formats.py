"""Rows in the shapes people have: each read right, and each broken variant refused with file, row and field."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit.data import turns, write_jsonl, write_parquet

import dudi
from dudi.data.formats import FORMATS
from dudi.data.load import check, load_rows
from dudi.errors import DudiError
from dudi.example import Message
from dudi.recipe.schema import Data

X, Y = (Message("user", "Apa kabar?"),), "Baik."
SAID = [("human", "Apa kabar?"), ("gpt", "Baik.")]
SHAREGPT = [{"from": who, "value": text} for who, text in SAID]
PARTS = [
    {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns("Apa kabar?", Y)
]
GOOD = {
    "messages": ("messages", {"messages": turns("Apa kabar?", Y)}),
    "conversations": ("messages", {"conversations": turns("Apa kabar?", Y)}),
    "other roles": ("messages", {"messages": [{"role": who, "content": text} for who, text in SAID]}),
    "parts": ("messages", {"messages": PARTS}),
    "text": ("messages", {"messages": repr(turns("Apa kabar?", Y))}),
    "sharegpt": ("ShareGPT", {"conversations": SHAREGPT}),
    "sharegpt under messages": ("ShareGPT", {"messages": SHAREGPT}),
    "sharegpt in text": ("ShareGPT", {"conversations": json.dumps(SHAREGPT)}),
    "pair": ("prompt and completion", {"prompt": "Apa kabar?", "completion": Y}),
    "pair of messages": (
        "prompt and completion",
        {"prompt": [{"role": "user", "content": "Apa kabar?"}], "completion": [{"role": "gpt", "content": Y}]},
    ),
    "alpaca": ("Alpaca", {"instruction": "Apa kabar?", "input": "", "output": Y}),
    "alpaca with more columns": ("Alpaca", {"instruction": "Apa kabar?", "output": Y, "prompt": "Below is ..."}),
    "aya": ("Aya", {"inputs": "Apa kabar?", "targets": Y, "language": "Indonesian", "language_code": "ind"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_format_is_told_by_look(tmp_path: Path, name: str) -> None:
    title, row = GOOD[name]
    write_jsonl(tmp_path / "rows.jsonl", [{"language": "id", **row}])
    loaded = load_rows(Data(source=str(tmp_path / "rows.jsonl")), 0)
    (example,) = loaded.train
    assert (example.x, example.y, example.l, example.untrained) == (X, Y, "id", ())
    assert loaded.report.read_as == {title: 1} and loaded.report.details()[0] == f"read as {title}, 1 row"


def one(tmp_path: Path, row: object, **values: object) -> list[tuple[str, str]]:
    write_jsonl(tmp_path / "rows.jsonl", [row])
    (example,) = load_rows(Data.model_validate({"source": str(tmp_path / "rows.jsonl"), **values}), 0).train
    return [*((m.role, m.content) for m in example.x), ("y", example.y)]


def test_system_and_history_in_columns_of_their_own(tmp_path: Path) -> None:
    row = {"language": "id", "system": "S", "conversations": SHAREGPT}
    assert one(tmp_path, row) == [("system", "S"), ("user", "Apa kabar?"), ("y", Y)]
    row = {"language": "id", "system": "S", "instruction": "a", "input": "b", "output": "c", "history": [["q", "r"]]}
    assert one(tmp_path, row) == [("system", "S"), ("user", "q"), ("assistant", "r"), ("user", "a\nb"), ("y", "c")]


def test_columns_by_other_names(tmp_path: Path) -> None:
    row = {"pertanyaan": "q", "jawaban": "a", "bahasa": "Bahasa Indonesia"}
    names = {"prompt": "pertanyaan", "completion": "jawaban", "language": "bahasa"}
    assert one(tmp_path, row, columns=names) == [("user", "q"), ("y", "a")]
    write_parquet(tmp_path / "rows.parquet", [row])
    assert load_rows(Data(source=str(tmp_path / "rows.parquet"), columns=names), 0).train[0].l == "id"
    for source, where in (("rows.jsonl", "line 1: tanya: no such column"), ("rows.parquet", "no column 'tanya'")):
        with pytest.raises(DudiError, match=f"{source}: {where}.*data.columns"):
            load_rows(Data(source=str(tmp_path / source), columns={**names, "prompt": "tanya"}), 0)
    with pytest.raises(DudiError, match=r"data.columns: unknown field 'promt'; choose from .*prompt"):
        load_rows(Data(source=str(tmp_path / "rows.jsonl"), columns={"promt": "pertanyaan"}), 0)


def test_a_format_by_name_is_the_only_one_tried(tmp_path: Path) -> None:
    row = {"language": "id", "messages": turns("a", "b"), "instruction": "c", "output": "d"}
    assert one(tmp_path, row) == [("user", "a"), ("y", "b")]
    assert one(tmp_path, row, format="alpaca") == [("user", "c"), ("y", "d")]
    with pytest.raises(DudiError, match=r"data.format: expected one of chat, messages, sharegpt, .* found 'alpacca'"):
        load_rows(Data(source=str(tmp_path / "rows.jsonl"), format="alpacca"), 0)


BROKEN = [
    (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]},
        r"conversations\[1\].value: content is not",
    ),
    ({"conversations": [{"from": "cat", "value": "a"}]}, r"conversations\[0\].from: unknown role: found 'cat'"),
    ({"conversations": SHAREGPT[::-1]}, r"conversations\[0\].from: turns out of order"),
    ({"conversations": [*SHAREGPT, {"from": "observation", "value": "30C"}]}, r"conversations\[2\].from: unknown role"),
    ({"conversations": SHAREGPT, "tools": '[{"name": "f"}]'}, "tools: tools cannot be read"),
    ({"instruction": "a", "output": ""}, "output: empty content"),
    ({"instruction": "a", "output": None}, "output: no conversation: found None"),
    ({"instruction": "a", "input": ["b"], "output": "c"}, "input: content is not text"),
    ({"instruction": "a", "output": "c", "history": ["q"]}, "history: unreadable history"),
    ({"instruction": "a", "output": "c", "system": 7}, "system: content is not text"),
    ({"inputs": "a", "targets": 7}, "targets: content is not text: found 7"),
    ({"inputs": "a"}, "targets: no conversation"),
    ({"prompt": "a", "completion": "\u200b"}, "completion: empty content"),
    (
        {"messages": [PARTS[0], {"role": "assistant", "content": [{"type": "image_url"}]}]},
        r"messages\[1\].content: cont",
    ),
    ({"chosen": turns("a", "b"), "rejected": turns("a", "c")}, "row: no conversation: found .*'chosen'.* wanted `mess"),
]


@pytest.mark.parametrize(("row", "said"), BROKEN, ids=lambda case: str(case)[:50])
def test_a_broken_row_of_any_format_is_named(tmp_path: Path, row: dict[str, object], said: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"language": "id", **GOOD["pair"][1]}, {"language": "id", **row}])
    with pytest.raises(DudiError, match=rf"^{re.escape(str(path))}: line 2: {said}") as error:
        load_rows(Data(source=str(path)), 0)
    assert "\n" not in str(error.value) and ", wanted " in str(error.value)


DOCS = Path(__file__).parents[2] / "docs/data.md"


def test_a_new_format_is_one_file_and_one_line(tmp_path: Path) -> None:
    package = tmp_path / "src/dudi"
    shutil.copytree(Path(dudi.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "lab", "evals"))
    shown = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (package / "data/formats/ranked.py").write_text(shown, encoding="utf-8")
    table = package / "data/formats/__init__.py"
    before = table.read_text(encoding="utf-8")
    line = "from dudi.data.formats import ranked; FORMATS = (*FORMATS, ranked.FORMAT)\n"
    table.write_text(before.replace("\nBY_LOOK, ", f"\n{line}BY_LOOK, "), encoding="utf-8")
    assert len(table.read_text(encoding="utf-8").splitlines()) == len(before.splitlines()) + 1
    answers = [{"text": "buruk", "score": 1}, {"text": "baik", "score": 2}]
    write_jsonl(tmp_path / "rows.jsonl", [{"language": "id", "ask": "a", "answers": answers}])
    code = (
        "import sys; from dudi.data.load import load_rows; from dudi.recipe.schema import Data\n"
        "for format in ('chat', 'ranked'):\n"
        "    rows = load_rows(Data(source=sys.argv[1], format=format), 0)\n"
        "    print(rows.train[0].y, *rows.report.details())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.jsonl")]
    path = os.pathsep.join([str(package.parent), *filter(None, sys.path)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.stdout.splitlines() == ["baik read as ranked answers, 1 row"] * 2, done.stderr


def test_the_documents_name_every_format() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for format in FORMATS:
        assert f"| `{format.name}` |" in page
        assert all(f"`{column}`" in page for column in format.columns)


def test_check_says_what_was_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"language": "id", **row} for _, row in GOOD.values()])
    report = check(Data(source=str(tmp_path / "rows.jsonl")))
    said = report.details()[0]
    assert said.startswith("read as messages, 5 rows, ShareGPT, 3 rows, ")
    assert sum(report.read_as.values()) == len(GOOD) and report.languages["id"].duplicated == len(GOOD) - 1

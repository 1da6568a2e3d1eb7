"""Benchmark folders: what is read, and one clear line for each way in which one can be wrong."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.evals import DESCRIPTION, item, rows, user, write

from dudi.errors import DudiError
from dudi.evals.bench import read_benchmark
from dudi.example import Message


def test_what_is_read(tmp_path: Path) -> None:
    b = read_benchmark(write(tmp_path))
    assert b.name == "small" and list(b.tasks) == ["mood", "capital", "to_english", "list"]
    assert b.languages == ("id", "th", "en")  # those averaged first
    assert b.candidates == ("en", "id", "th")
    assert [i.id for i in b.items] == [row["id"] for row in rows()]
    assert [i.id for i in b.cells["mood", "th"]] == ["m3", "m4"]
    assert ("mood", "en") not in b.cells
    by_id = {i.id: i for i in b.items}
    assert by_id["l2"].prompt == (Message("system", "ตอบสั้น"), Message("user", "ตอบเป็นภาษาอังกฤษ"))
    assert (by_id["l2"].asked, by_id["l1"].asked) == ("en", "id")
    assert [b.max_new_tokens(by_id[i]) for i in ("m1", "c1", "c2")] == [6, 5, 7]


def test_limit_is_by_task_and_language(tmp_path: Path) -> None:
    b = read_benchmark(write(tmp_path))
    assert [i.id for i in b.limited(1)] == ["m1", "m3", "c1", "c2", "c3", "t1", "t3", "l1", "l2"]
    assert b.limited(None) == b.limited(2) == b.items


def test_several_files_blank_lines_hidden_files_and_a_byte_order_mark(tmp_path: Path) -> None:
    folder = write(tmp_path, items=rows()[:6])
    rest = "\n\n".join(json.dumps(row) for row in rows()[6:])
    (folder / "items" / "b.jsonl").write_text(rest, encoding="utf-8-sig")
    (folder / "items" / ".cache").write_text("x")
    assert [i.id for i in read_benchmark(folder).items] == [row["id"] for row in rows()]


def test_words(tmp_path: Path) -> None:
    b = read_benchmark(write(tmp_path, words={"id": "kucing\n\n makan ikan \n", "th": "แมว\n", "en": "cat\n"}))
    assert b.words["id"] == ("kucing", "makan ikan")
    assert b.candidates == ("en", "id", "th")


def test_the_hash_is_of_all_files(tmp_path: Path) -> None:
    first = read_benchmark(write(tmp_path / "a")).sha256
    assert read_benchmark(write(tmp_path / "b")).sha256 == first
    changed = rows()
    changed[0]["messages"] = user("Senang?  A ya, B tidak.")
    others = [
        write(tmp_path / "c", items=changed),
        write(tmp_path / "d", {**DESCRIPTION, "version": 2}),
        write(tmp_path / "e", words={"id": "a b", "th": "แมว", "en": "cat"}),
        write(tmp_path / "f", words={"id": "a", "th": "แมว", "en": "cat"}),
    ]
    assert len({first, *(read_benchmark(folder).sha256 for folder in others)}) == 5


Change = Callable[[dict[str, Any], list[dict[str, Any]]], None]


def top(**fields: Any) -> Change:
    """benchmark.json with other fields (None: taken out)."""

    def change(d: dict[str, Any], items: list[dict[str, Any]]) -> None:
        d.update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del d[key]

    return change


def task(name: str, **fields: Any) -> Change:
    """A task with other fields."""
    return lambda d, items: d["tasks"].setdefault(name, {}).update(fields)


def row(number: int, **fields: Any) -> Change:
    """An item with other fields (None: taken out)."""

    def change(d: dict[str, Any], items: list[dict[str, Any]]) -> None:
        items[number].update(fields)
        for key in [key for key, value in fields.items() if value is None]:
            del items[number][key]

    return change


def added(line: dict[str, Any]) -> Change:
    """One more item."""
    return lambda d, items: items.append(line)


def without(name: str) -> Change:
    """No items of a task."""
    return lambda d, items: items.__setitem__(slice(None), [i for i in items if i["task"] != name])


EXACT = {"metric": "exact", "max_new_tokens": 4}
BAD: dict[str, tuple[Change, str]] = {
    # benchmark.json
    "unknown key": (top(averages=["id"]), "benchmark.json: unknown key: 'averages'; did you mean 'averaged'?"),
    "missing key": (top(averaged=None), "benchmark.json: averaged: missing"),
    "version is a text": (top(version="1"), "version: expected a whole number, found '1'"),
    "version 0": (top(version=0), "version: expected a number greater than 0, found 0"),
    "name is a path": (top(name="../x"), "name: expected a name of letters"),
    "empty averaged": (top(averaged=[]), "averaged: expected 1 or more entries, found []"),
    "averaged is a text": (top(averaged="id"), "averaged: expected a list, found 'id'"),
    "averaged by name": (top(averaged=["Thai"]), "averaged: use the language code 'th' instead of 'Thai'"),
    "averaged is no code": (top(averaged=["Klingon"]), "averaged: unknown language 'Klingon'"),
    "averaged twice": (top(averaged=["id", "id"]), "averaged: 'id' occurs twice"),
    "averaged without items": (top(averaged=["id", "vi"]), "averaged: 'vi' has no items"),
    "translation": (top(translation=["nlgg"]), "translation: unknown competency: 'nlgg'; did you mean 'nlg'?"),
    "competency without task": (top(competencies=["nlu", "nlg", "rules", "x"]), "competencies: 'x' has no task"),
    "no tasks": (top(tasks={}), "tasks: expected 1 or more entries"),
    "tasks is a list": (top(tasks=[]), "tasks: expected a table (JSON object), found []"),
    "task of no competency": (task("mood", competency="nul"), "tasks.mood.competency: unknown competency: 'nul'"),
    "task, unknown key": (task("mood", metrics="exact"), "tasks.mood: unknown key: 'metrics'; did you mean 'metric'?"),
    "task, metric": (task("mood", metric="bleu"), "tasks.mood.metric: expected one of 'choice', 'choice_loglik'"),
    "task, missing key": (task("more", metric="exact"), "tasks.more.competency: missing"),
    "task, no tokens": (task("mood", max_new_tokens=0), "max_new_tokens: expected a positive whole number"),
    "task, no default": (task("mood", max_new_tokens={"id": 3}), "a table by language needs a `default`"),
    "task, tokens of no language": (
        task("mood", max_new_tokens={"default": 3, "Thai": 4}),
        "max_new_tokens: use the language code 'th'",
    ),
    "task, tokens nobody reads": (task("mood", max_new_tokens={"default": 3, "vi": 4}), "no items in 'vi'"),
    "group named as a task": (task("mood", group="capital"), "tasks.mood.group: 'capital' is the name of a task"),
    "group over competencies": (
        lambda d, items: [d["tasks"][name].update(group="g") for name in ("mood", "list")] and None,
        "tasks.list.group: 'g' has tasks of two competencies (nlu, rules)",
    ),
    "task without items": (without("list"), "task 'list' of benchmark.json has no items"),
    # items
    "no items": (lambda d, items: items.clear(), "items: no items"),
    "item, unknown task": (row(0, task="mode"), "all.jsonl: line 1: task: unknown task: 'mode'; did you mean 'mood'?"),
    "item, unknown key": (row(0, target=["A"]), "line 1: unknown key: 'target'; did you mean 'targets'?"),
    "item, missing key": (row(1, language=None), "line 2: language: missing"),
    "item, language": (row(1, language="ind"), "line 2: language: use the language code 'id' instead of 'ind'"),
    "item, number as id": (row(1, id=5), "line 2: id: expected a text, found 5"),
    "item, empty id": (row(1, id=""), "line 2: id: expected a text that is not empty, found ''"),
    "id twice": (row(3, id="m1"), "line 4: id: 'm1' is taken already by"),
    "messages is a text": (row(0, messages="?"), "line 1: messages: expected a list, found '?'"),
    "no messages": (row(0, messages=[]), "line 1: messages: expected 1 or more entries, found []"),
    "role": (row(0, messages=[{"role": "human", "content": "?"}]), "messages.0.role: expected one of 'system', 'user'"),
    "empty content": (row(0, messages=user("")), "messages.0.content: expected a text that is not empty"),
    "message, unknown key": (row(0, messages=[{**user("?")[0], "text": "x"}]), "messages.0: unknown key: 'text'"),
    "last is no question": (
        row(0, messages=[*user("?"), {"role": "assistant", "content": "!"}]),
        "line 1: messages: the last is of 'assistant', expected 'user'",
    ),
    "no targets": (row(4, targets=None), "line 5: targets: expected one or more accepted answers, found none"),
    "empty targets": (row(4, targets=[]), "line 5: targets: expected one or more"),
    "target is punctuation": (row(4, targets=["..."]), "line 5: targets: '...' is only punctuation"),
    "target is a text": (row(4, targets="Paris"), "line 5: targets: expected a list, found 'Paris'"),
    "choice without choices": (row(0, choices=None), "line 1: choices: missing; task 'mood' has metric 'choice'"),
    "choices nobody reads": (row(4, choices=["a", "b"]), "choices: not read; task 'capital' has metric 'exact'"),
    "one choice": (row(0, choices=["A"]), "line 1: choices: expected 2 or more entries, found ['A']"),
    "two choices the same": (row(0, choices=["A", "a."]), "choices: two are the same once normalised"),
    "target is no choice": (row(0, targets=["C"]), "targets: expected exactly one, which is among the choices"),
    "two targets of a choice": (row(0, targets=["A", "B"]), "targets: expected exactly one"),
    "always the same choice": (row(1, targets=["A"]), "'mood', language 'id': the right choice is the same in all 2"),
    "constraints nobody reads": (row(4, constraints={}), "constraints: not read; task 'capital' has metric 'exact'"),
    "no constraints": (row(10, constraints=None), "line 11: constraints: missing"),
    "nothing to check": (row(10, constraints={}), "line 11: constraints: nothing to check"),
    "constraint, unknown key": (row(10, constraints={"counts": 2}), "constraints: unknown key: 'counts'; did you mean"),
    "constraint, count": (row(10, constraints={"count": 2.5}), "constraints.count: expected a whole number"),
    "constraint, truth": (
        row(10, constraints={"distinct": 1}),
        "constraints.distinct: expected true or false, found 1",
    ),
    "response language": (row(7, response_language="English"), "response_language: use the language code 'en'"),
    "unknown language without words": (
        added(item("x", "capital", "jv", "?", targets=["x"])),
        "answers in 'jv' cannot be recognised without word lists: give words/jv.txt",
    ),
}


def line_of(folder: Path) -> str:
    """The one line of a folder that is refused."""
    with pytest.raises(DudiError) as refused:
        read_benchmark(folder)
    text = str(refused.value)
    assert text.isprintable() and len(text) < 500
    return text


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_one_clear_line(name: str, tmp_path: Path) -> None:
    change, said = BAD[name]
    description, items = copy.deepcopy(DESCRIPTION), rows()
    change(description, items)
    text = line_of(write(tmp_path, description, items))
    assert said in text
    assert text.startswith(str(tmp_path))


def no_folder(folder: Path) -> Path:
    return folder / "nowhere"


def raw(name: str, text: bytes) -> Callable[[Path], Path]:
    """A good folder with one file replaced."""

    def change(folder: Path) -> Path:
        file = write(folder) / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text)
        return folder

    return change


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no folder": (no_folder, "expected a folder with benchmark.json"),
    "not JSON": (raw("benchmark.json", b"{"), "benchmark.json: not valid JSON"),
    "not UTF-8": (raw("benchmark.json", b"\xff"), "benchmark.json: not UTF-8 text"),
    "a list": (raw("benchmark.json", b"[]"), "benchmark.json: expected a table (JSON object), found []"),
    "a key twice": (raw("benchmark.json", b'{"name": "a", "name": "b"}'), "key 'name' occurs twice"),
    "too deep": (raw("benchmark.json", b"[" * 100_000), "benchmark.json: not valid JSON"),
    "an item that is not JSON": (raw("items/b.jsonl", b"\nx\n"), "b.jsonl: line 2: not valid JSON"),
    "an item that is a number": (
        raw("items/b.jsonl", b"5"),
        "b.jsonl: line 1: expected a table (JSON object), found 5",
    ),
    "another kind of file": (raw("items/b.json", b"{}"), "b.json: expected only .jsonl files in items/"),
    "words of no language": (raw("words/klingon.txt", b"qapla"), "klingon.txt: file name: unknown language"),
    "words by name": (raw("words/thai.txt", b"x"), "thai.txt: file name: use the language code 'th'"),
    "no words": (raw("words/id.txt", b"\n \n"), "id.txt: empty; expected one word or phrase a line"),
    "words of some": (raw("words/id.txt", b"kucing"), "words: no en.txt; with word lists, every language needs one"),
    "another kind of words": (raw("words/id.csv", b"x"), "id.csv: expected only .txt files in words/"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_one_clear_line(name: str, tmp_path: Path) -> None:
    change, said = FILES[name]
    assert said in line_of(change(tmp_path))


def test_an_item_with_a_language_of_its_own_is_fine_with_words(tmp_path: Path) -> None:
    words = {"jv": "kucing", "id": "kucing", "th": "แมว", "en": "cat"}
    items = [*rows(), item("x", "capital", "jv", "?", targets=["x"])]
    assert "jv" in read_benchmark(write(tmp_path, items=items, words=words)).languages


@pytest.mark.parametrize("name", ["bench", "metrics", "aggregate", "answers", "cells", "language", "tables"])
def test_reading_and_scoring_load_no_torch(name: str) -> None:
    code = f"import sys, dudi.evals.{name}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "datasets", "accelerate"} & set(done.stdout.split()) == set()

import errno
import hashlib
import json
import os

import pytest
from kit.data import made_rows, turns, write_jsonl, write_parquet

from dudi.data.load import load_rows, read_rows, write_rows
from dudi.data.report import COLUMNS, DataReport
from dudi.errors import DudiError
from dudi.recipe.schema import Data


@pytest.fixture
def rows(tmp_path):
    write_parquet(tmp_path / "data/Indonesian.parquet", made_rows(120))
    odd = {"messages": turns("a\u2028b\x85\n", "\u0e01\t\"'\\"), "language": "id"}
    write_jsonl(tmp_path / "odd.jsonl", [odd])
    data = Data(source=str(tmp_path / "data"), format="sea_instruct", rows_per_language=30, eval_rows_per_language=5)
    loaded = load_rows(data, 4)
    loaded.train += load_rows(Data(source=str(tmp_path / "odd.jsonl")), 0).train
    from dudi.data.rows import sha256_of

    loaded.manifest["sha256"]["train"] = sha256_of(loaded.train)
    return loaded


def test_rows_survive_the_folder(rows, tmp_path):
    write_rows(rows, tmp_path / "new/folder")
    assert read_rows(tmp_path / "new/folder") == rows
    assert sorted(p.name for p in (tmp_path / "new/folder").iterdir()) == [
        "eval.jsonl",
        "manifest.json",
        "report.json",
        "train.jsonl",
    ]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["folder"]
    manifest = json.loads((tmp_path / "new/folder/manifest.json").read_text())
    for part in ("train", "eval"):
        assert (
            manifest["sha256"][part] == hashlib.sha256((tmp_path / f"new/folder/{part}.jsonl").read_bytes()).hexdigest()
        )
    assert manifest["seed"] == 4 and manifest["filters"] and manifest["versions"]["pyarrow"]
    line = json.loads((tmp_path / "new/folder/train.jsonl").open(encoding="utf-8").readline())
    assert set(line) == {"messages", "language", "id"}
    again = load_rows(Data(source=str(tmp_path / "new/folder")), 0)
    assert again.train == rows.train
    assert again.manifest["sha256"]["train"] == manifest["sha256"]["train"]


def test_an_empty_folder_is_taken_and_an_occupied_one_refused(rows, tmp_path):
    (tmp_path / "out").mkdir()
    write_rows(rows, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(DudiError, match="already holds something"):
        write_rows(rows, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(DudiError, match="already holds something"):
        write_rows(rows, tmp_path / "file")


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_full_disk_leaves_nothing(rows, tmp_path, monkeypatch, step):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "parent").mkdir()
    monkeypatch.setattr(os, step, full)
    with pytest.raises(DudiError, match=r"parent/out: cannot be written \(No space left on device\)"):
        write_rows(rows, tmp_path / "parent/out")
    assert list((tmp_path / "parent").iterdir()) == []


def test_a_parent_that_cannot_be_written(rows, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DudiError, match=r"file/out: cannot be written \(File exists\)"):
        write_rows(rows, tmp_path / "file/out")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(DudiError, match=r"cannot be written \(Permission denied\)"):
            write_rows(rows, tmp_path / "closed/out")
    if os.path.isdir("/proc/self"):  # a folder nobody can write to, root included
        with pytest.raises(DudiError, match="cannot be written"):
            write_rows(rows, "/proc/self/out")


@pytest.mark.parametrize("part", ["train", "eval"])
def test_changed_rows_are_refused(rows, tmp_path, part):
    write_rows(rows, tmp_path / "out")
    file = tmp_path / f"out/{part}.jsonl"
    file.write_bytes(file.read_bytes().replace(b"answer", b"Answer", 1))
    with pytest.raises(DudiError, match=rf"{part}.jsonl: changed since it was prepared: sha256 \w+, wanted \w+"):
        read_rows(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("manifest.json", None, "manifest.json: cannot be read"),
        ("train.jsonl", None, "train.jsonl: cannot be read"),
        ("manifest.json", "{", "manifest.json: not a JSON object"),
        ("manifest.json", "[]", "manifest.json: not a JSON object"),
        ("manifest.json", "{}", "train.jsonl: changed"),
        ("manifest.json", '{"sha256": 3}', "train.jsonl: changed"),
        ("report.json", "{}", "report.json: not a report"),
        ("report.json", '{"languages": {"id": {}}, "notes": []}', "report.json: not a report"),
        ("report.json", '{"languages": 3, "notes": []}', "report.json: not a report"),
    ],
)
def test_damaged_folders_are_refused(rows, tmp_path, name, text, said):
    write_rows(rows, tmp_path / "out")
    if text is None:
        (tmp_path / "out" / name).unlink()
    else:
        (tmp_path / "out" / name).write_text(text)
    with pytest.raises(DudiError, match=said):
        read_rows(tmp_path / "out")


def test_report_is_json_and_table():
    report = DataReport(notes=["a note"])
    one = report.of("my")
    one.read, one.kept, one.zawgyi = 10, 5, 1
    one.filtered["not excellent"] += 2
    one.add_broken("no answer", "file: row 1: ...")
    assert not one.balanced
    one.duplicated = 1
    assert one.balanced
    assert DataReport.from_json(json.loads(json.dumps(report.as_json()))) == report
    (row,) = report.table()
    assert dict(zip(COLUMNS, row, strict=True))["broken"] == "1"
    assert report.details() == ["my: filtered: not excellent 2", "my: broken: no answer 1"]
    assert (
        one.line()
        == "10 read, 1 duplicated, 2 filtered (not excellent 2), 1 broken (no answer 1), 1 in Zawgyi encoding"
    )

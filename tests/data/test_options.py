"""`dudi data` names its own options, not the keys of a recipe, and takes what people write."""

import re

import pytest
from kit.data import turns, write_jsonl, write_parquet
from typer.testing import CliRunner

from dudi.data.cli import app
from dudi.errors import DudiError

SEA = {"conversations": repr(turns("a", "b"))}


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, DudiError | SystemExit), result.exception
    return result.output, str(result.exception or "")


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (SEA, (), "use --format sea_instruct.*--format messages"),
        ({"language": 3, "messages": turns("a", "b")}, (), r"\(or one for all rows, in --language\)"),
        ({"language": "id", "messages": [{"name": "x", **t} for t in turns("a", "b")]}, (), "or --ignore name to"),
        ({"language": "id", "prompt": "a", "completion": "b"}, ("--columns", "prompt=c"), "'c', which --columns names"),
        ({"language": "id", "prompt": "a", "completion": "b"}, ("--columns", "prompt"), "--columns: expected pairs"),
        ({"language": "id", "prompt": "a", "completion": "b"}, ("--format", "xml"), "--format: expected one of chat"),
    ],
)
def test_faults_name_options(tmp_path, row, options, said):
    write_parquet(tmp_path / "rows.parquet", [row])
    output, error = run("check", tmp_path / "rows.parquet", *options)
    assert re.search(said, error) and "data." not in error.replace("docs/data.md", "").replace(str(tmp_path), "")
    assert "data." not in output


def test_options_are_read(tmp_path):
    rows = [{"tanya": f"q {i}", "jawab": "a", "bahasa": 7, "name": "x"} for i in range(3)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    columns = "prompt=tanya, completion=jawab,language=bahasa"
    output, error = run("check", tmp_path / "rows.jsonl", "--columns", columns, "--language", "Basa Jawa")
    assert not error and "read as prompt and completion, 3 rows" in output and re.search(r"(?m)^jv +3 ", output)
    assert "note: --language jv overrides what rows say of their language (7 3)" in output
    options = ("--columns", columns, "--language", "jv", "--out", tmp_path / "out")
    output, error = run("prepare", tmp_path / "rows.jsonl", *options)
    assert not error and "3 training rows" in output


@pytest.mark.parametrize("sources", [["none.jsonl"], ["here.jsonl", "none.jsonl"]])
def test_a_source_that_is_not_there(tmp_path, sources):
    write_jsonl(tmp_path / "here.jsonl", [{"language": "id", "prompt": "a", "completion": "b"}])
    _, error = run("check", *(tmp_path / name for name in sources))
    assert error.startswith(f"SOURCE: no file or folder '{tmp_path}/none.jsonl'")
    _, error = run("check", tmp_path / "none.jsonl", "--format", "sea_instruct")
    assert error.startswith("SOURCE: ")

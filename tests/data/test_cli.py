import json
import subprocess
import sys

import pytest
from kit.data import made_rows, turns, write_jsonl, write_parquet
from typer.testing import CliRunner

from dudi.data.cli import app
from dudi.data.load import read_rows
from dudi.errors import DudiError


def run(*args):
    """(output, error): a DudiError is what `dudi` prints as one line before it exits with status 2."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, DudiError | SystemExit):
        raise result.exception
    error = str(result.exception) if isinstance(result.exception, DudiError) else None
    assert error is None or "\n" not in error
    return result.output, error, result.exit_code


def cells(output, language):
    (line,) = [line.split() for line in output.splitlines() if line.split()[:1] == [language]]
    return line


@pytest.fixture
def sea(tmp_path):
    rows = made_rows(50)
    rows[3]["conversations"] = "["
    rows[4]["prompt_input_quality"] = "Poor"
    rows[5] = rows[6]
    write_parquet(tmp_path / "sea/Indonesian.parquet", rows)
    return tmp_path / "sea"


def test_check_of_sea_instruct(sea):
    output, error, status = run("check", sea, "--format", "sea_instruct")
    assert (error, status) == (None, 0)
    header = output.splitlines()[0].split()
    assert header == ["language", "read", "duplicated", "filtered", "broken", "zawgyi", "undrawn", "eval", "kept"]
    assert cells(output, "id") == ["id", "50", "1", "1", "1", "0", "0", "0", "47"]
    assert "id: broken: unreadable conversation 1" in output and "Indonesian.parquet: row 4: conversations" in output


def test_check_of_chat_data_fails_on_broken_rows_with_one_line(tmp_path):
    good = [{"messages": turns(str(i), "b"), "language": "vi"} for i in range(4)]
    write_jsonl(tmp_path / "rows.jsonl", good)
    output, error, status = run("check", tmp_path / "rows.jsonl")
    assert (error, status) == (None, 0) and cells(output, "vi")[-1] == "4"
    write_jsonl(tmp_path / "rows.jsonl", [*good, {"messages": turns("a", ""), "language": "vi"}, "x"])
    output, error, _ = run("check", tmp_path / "rows.jsonl")
    assert cells(output, "vi")[1] == "5" and cells(output, "?")[1] == "1"
    assert "line 6: line: not JSON" in error and "(2 broken rows in all); mend them, or train with bad_rows" in error
    output, error, _ = run("check", tmp_path / "rows.jsonl", "--language", "vi")
    assert cells(output, "vi")[1] == "6" and "line 5: messages[1].content: empty content" in error
    write_jsonl(tmp_path / "rows.jsonl", [])
    assert run("check", tmp_path / "rows.jsonl")[1].endswith("no row that could be trained on")


def test_a_misspelt_language_is_noticed(tmp_path):
    rows = [
        {"messages": turns(str(i), "b"), "language": code} for i, code in enumerate(["vi", "vi", "thh", "thh", "ht"])
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    output, error, status = run("check", tmp_path / "rows.jsonl")
    assert (error, status) == (None, 0)
    said = " ".join(output.split())
    assert "note: no template is shipped for ht (1 row), thh (2 rows): a misspelt language?" in said, output
    output, _, _ = run("check", tmp_path / "rows.jsonl", "--languages", "vi,ht")
    said = " ".join(output.split())
    assert "no template" not in said and "note: 2 rows left out: languages not in --languages (thh 2)" in said, output


def test_prepare_writes_a_folder_that_reads_back(sea, tmp_path):
    out = tmp_path / "out"
    options = ("--format", "sea_instruct", "--languages", "Indonesian", "--rows", 20, "--eval", 4, "--seed", 9)
    output, error, status = run("prepare", sea, "--out", out, *options)
    assert (error, status) == (None, 0)
    assert "20 training rows, 4 evaluation rows" in output
    rows = read_rows(out)
    assert (len(rows.train), len(rows.eval), rows.manifest["seed"]) == (20, 4, 9)
    _, error, _ = run("prepare", sea, "--out", out, *options)
    assert "already holds something" in error
    output, error, _ = run("check", out)
    assert error is None and cells(output, "id")[-1] == "20"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "xml"), "--format: .*sea_instruct.*chat.*found 'xml'"),
        (("--languages", "id,Klingon"), "--languages: unknown language 'Klingon'"),
        (("--language", "Klingon"), "--language: unknown language 'Klingon'"),
        (("--bad-rows", "eat"), "--bad-rows: .*skip.*error.*found 'eat'"),
        ((), "no file or folder"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, said):
    import re

    _, error, _ = run("prepare", tmp_path / "none/x.jsonl", "--out", tmp_path / "out", *options)
    assert re.search(said, error)
    assert not (tmp_path / "out").exists()


def test_bad_rows_skipped_on_request(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns("a", "b"), "language": "vi"}, "x"])
    assert "line 2" in run("prepare", tmp_path / "rows.jsonl", "--out", tmp_path / "out")[1]
    assert not (tmp_path / "out").exists()
    output, error, _ = run("prepare", tmp_path / "rows.jsonl", "--out", tmp_path / "out", "--bad-rows", "skip")
    assert error is None and "1 training rows" in output


def test_importing_the_commands_loads_nothing_heavy():
    heavy = ["torch", "transformers", "datasets", "pyarrow", "numpy", "pydantic", "huggingface_hub"]
    code = f"import sys, json, dudi.data.cli; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    code = f"import sys, json, dudi.data.load; print(json.dumps([m for m in {heavy[:3]} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []

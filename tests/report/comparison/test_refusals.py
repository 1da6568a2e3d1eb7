"""What cannot be compared is one line and exit status 2, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.command import Dudi

from dudi.errors import DudiError
from dudi.report.comparison.write import write_comparison

Named = Callable[..., list[str]]


@pytest.fixture
def dudi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dudi:
    return Dudi(tmp_path, tmp_path / "models", monkeypatch, capsys)


def refused(dudi: Dudi, given: list[str], *expected: str) -> None:
    """The command's one line, and no file."""
    target = dudi.folder / "out.md"
    line = dudi.refused("compare", *given, "--output", str(target))
    for text in expected:
        assert text in line, line
    assert not target.exists() and not dudi.text


def changed(folder: Path, target: Path, file: str, *places: tuple[str, Any]) -> str:
    """A copy of an evaluation with values of a JSON file replaced, each by its dotted name."""
    shutil.copytree(folder, target)
    whole = json.loads((target / file).read_text(encoding="utf-8"))
    for name, value in places:
        *path, last = name.split(".")
        part = whole
        for key in path:
            part = part[key]
        part[last] = value
    (target / file).write_text(json.dumps(whole), encoding="utf-8")
    return str(target)


FIELDS: dict[str, tuple[str, Any, str]] = {
    "another benchmark": (
        "benchmark.name",
        "other",
        "benchmark.name is 'made' in the first's eval.json and 'other' in the second's",
    ),
    "another version": (
        "benchmark.version",
        2,
        "benchmark.version is 1 in the first's eval.json and 2 in the second's",
    ),
    "other items": ("benchmark.sha256", "0" * 64, "benchmark.sha256 is '"),
    "sampled": (
        "decoding.temperature",
        0.7,
        "decoding.temperature is 0.0 in the first's eval.json and 0.7 in the second's",
    ),
    "other decoding seeds": (
        "decoding.seeds",
        [1],
        "decoding.seeds is [0] in the first's eval.json and [1] in the second's",
    ),
    "a limit": ("decoding.limit", 4, "decoding.limit is None in the first's eval.json and 4 in the second's"),
    "another batch": ("decoding.batch", 8, "decoding.batch is 64 in the first's eval.json and 8 in the second's"),
    "other arithmetic": (
        "decoding.dtype",
        "bfloat16",
        "decoding.dtype is 'float32' in the first's eval.json and 'bfloat16'",
    ),
    "other attention": (
        "decoding.attention",
        "eager",
        "decoding.attention is None in the first's eval.json and 'eager'",
    ),
    "another engine": ("decoding.engine", "cuda", "decoding.engine is 'local' in the first's eval.json and 'cuda'"),
    "another evaluator": (
        "versions.dudi",
        "0.2.0",
        "versions.dudi is '0.1.0' in the first's eval.json and '0.2.0' in the second's",
    ),
    "another metric": ("marks.exact", "F1", "marks is {"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_records_that_differ_in_more_than_the_model(case: str, made: Path, dudi: Dudi, tmp_path: Path) -> None:
    name, value, expected = FIELDS[case]
    other = changed(made / "dudi-0", tmp_path / "other", "eval.json", (name, value))
    refused(dudi, [f"sft={made / 'sft-0'}", f"DuDi={other}"], "'sft' and 'DuDi' do not compare: ", expected)
    refused(
        dudi, [f"sft={made / 'sft-0'}", f"sft={made / 'sft-1'}", f"DuDi={made / 'dudi-1'}", f"DuDi={other}"], expected
    )


def test_a_scorer_that_only_one_record_names(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    other = changed(
        made / "dudi-0", tmp_path / "other", "eval.json", ("versions", {"dudi": "0.1.0", "sacrebleu": "2.5"})
    )
    refused(dudi, [str(made / "sft-0"), other], "versions.sacrebleu is None in the first's eval.json and '2.5'")


def test_other_versions_of_what_decodes_are_told(made: Path, tmp_path: Path) -> None:
    other = changed(made / "dudi-0", tmp_path / "other", "eval.json", ("versions.torch", "2.14.0"))
    assert "several versions of torch: 2.13.0, 2.14.0" in write_comparison([str(made / "sft-0"), other])


def test_templates_belong_to_the_model(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    """Two names may have theirs, which is told; the seeds of one name have one."""
    other = changed(made / "dudi-0", tmp_path / "other", "eval.json", ("decoding.chat_kwargs", {"thinking": True}))
    assert "Chat templates or their arguments were given differently" in write_comparison([str(made / "sft-0"), other])
    given = [f"sft={made / 'sft-0'}", f"dudi={made / 'dudi-1'}", f"dudi={other}"]
    refused(dudi, given, "'dudi': decoding.chat_kwargs is {} in", "and {'thinking': True} in", other)


def test_other_items_of_the_same_benchmark(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    shutil.copytree(made / "dudi-0", tmp_path / "other")
    file = tmp_path / "other" / "responses-0.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    refused(dudi, [str(made / "sft-0"), str(tmp_path / "other")], "asked different items")


def test_items_twice_or_in_another_order(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    """Values are paired item by item: none may be counted twice, or paired with another's."""
    changes: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
        "twice": (lambda lines: [*lines, lines[2]], "is answered twice under one seed; evaluate again"),
        "turned": (lambda lines: lines[::-1], "'B' have the same items in another order"),
    }
    for name, (change, expected) in changes.items():
        shutil.copytree(made / "dudi-0", tmp_path / name)
        file = tmp_path / name / "responses-0.jsonl"
        file.write_text("\n".join(change(file.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
        refused(dudi, [f"A={made / 'sft-0'}", f"B={tmp_path / name}"], expected)


def test_one_model_is_no_two_training_seeds(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    shutil.copytree(made / "sft-0", tmp_path / "again")
    given = [f"sft={made / 'sft-0'}", f"sft={tmp_path / 'again'}", f"dudi={made / 'dudi-0'}"]
    refused(dudi, given, "'sft': ", "are of the same weights (", "they are no two training seeds", "repeat --seed")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["{made}/sft-0"], "nothing to compare: give two evaluations or more"),
        (["{made}/sft-0", "{made}/none"], "none': no such folder; expected FOLDER or NAME=FOLDER"),
        (["{made}/sft-0", "B={made}/none"], "/none': no folder '"),
        (["{made}/sft-0", "={made}/dudi-0"], "no such folder; expected FOLDER or NAME=FOLDER"),
        (["{made}/sft-0", "B="], "'B=': no such folder"),
        (["A={made}/sft-0", "B={made}/./sft-0"], "once more; give each evaluation once"),
        (["A={made}/sft-0", "A={made}/sft-0"], "once more; give each evaluation once"),
        (["A={made}/sft-0", "B={made}/bench"], "is no finished evaluation: eval.json is missing"),
        (["A={made}/sft-0", "x" * 5000], "File name too long"),
        (["A={made}/sft-0", "B=" + "x" * 5000], "File name too long"),
        (["A={made}/sft-0", "B\x1b[2J={made}/dudi-0"], "\\x1b[2J="),
        (["A={made}/sft-0", "B={made}/\udcff"], "bytes that are no UTF-8"),
        (
            ["A={made}/sft-0", "B={made}/dudi-0", "--output", "{made}/sft-0/table.json"],
            "among the files of an evaluation",
        ),
        (["A={made}/sft-0", "B={made}/dudi-0", "--baseline", "a"], "--baseline: unknown name: 'a'; choices: A, B"),
        (["A={made}/sft-0", "B={made}/dudi-0", "--output", "x.csv"], "'x.csv': expected a file ending in .md, .json"),
        (["A={made}/sft-0", "B={made}/dudi-0", "--output", "{made}/a.md"], "a.md' is a folder; expected a file"),
    ],
)
def test_bad_arguments(given: list[str], expected: str, made: Path, dudi: Dudi) -> None:
    (made / "a.md").mkdir(exist_ok=True)
    refused(dudi, [text.format(made=made) for text in given], expected)


def test_files_of_other_kinds(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    base = str(made / "sft-0")

    def spoilt(name: str, file: str, text: Callable[[str], str]) -> list[str]:
        target = tmp_path / name
        shutil.copytree(made / "dudi-0", target)
        (target / file).write_text(text((target / file).read_text(encoding="utf-8")), encoding="utf-8")
        return [base, f"B={target}"]

    refused(dudi, spoilt("a", "responses-0.jsonl", lambda _: ""), "responses-0.jsonl: empty; evaluate again")
    nan = lambda text: text.replace('"value": 1.0', '"value": NaN', 1).replace('"value": 1,', '"value": NaN,', 1)  # noqa: E731
    refused(dudi, spoilt("b", "responses-0.jsonl", nan), "value: expected a finite number, found nan")
    table = json.loads((made / "dudi-0" / "table.json").read_text(encoding="utf-8"))
    for n, mean in enumerate((float("nan"), float("inf"))):
        text = json.dumps({**table, "overall": {"mean": mean, "spread": None}})
        refused(
            dudi, spoilt(f"c{n}", "table.json", lambda _, text=text: text), "overall.mean: expected a finite number"
        )
    refused(dudi, spoilt("d", "table.json", lambda text: text[:-9]), "table.json: not valid JSON")
    refused(dudi, spoilt("e", "eval.json", lambda _: "[]"), "eval.json: expected a table (JSON object), found []")


def test_a_file_that_cannot_be_written(made: Path, dudi: Dudi, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    given = [str(made / "sft-0"), str(made / "dudi-0")]
    line = dudi.refused("compare", *given, "--output", str(tmp_path / "file" / "out.md"))
    assert line.startswith("--output: ") and "file" in line


def test_too_few_evaluations_in_the_interface(named: Named) -> None:
    with pytest.raises(DudiError, match="nothing to compare"):
        write_comparison(named(sft=1))
    with pytest.raises(DudiError, match="nothing to compare"):
        write_comparison([])

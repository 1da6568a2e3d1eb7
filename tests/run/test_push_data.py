"""`dudi data push`: rows as a data set of the hub, under a license that lets them be, to the same small server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
import yaml
from kit.command import TOKEN, Dudi
from kit.hub import REPO, Hub

from dudi.data.load import load_rows, write_rows
from dudi.recipe.schema import Data

COMMIT = "a1" * 20
LICENSE = ("--license", "cc-by-4.0")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Of a file in a folder of this machine, some of them held out."""
    source = tmp_path / "of" / "someone" / "rows.jsonl"
    source.parent.mkdir(parents=True)
    kit.write_rows(source, kit.short_rows(24))
    write_rows(load_rows(Data(source=str(source), eval_rows_per_language=1), 0), tmp_path / "prepared")
    return tmp_path / "prepared"


def changed_manifest(folder: Path, **values: Any) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_dry_run_shows_files_and_card_and_asks_nobody(
    dudi: Dudi, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows / "tokens-train.npz").write_bytes(b"x")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    assert dudi("data", "push", str(rows), REPO, *LICENSE) == 0, dudi.err
    for name in ("train.jsonl", "eval.jsonl"):
        assert f"{(rows / name).stat().st_size:,} bytes  {name}\n" in dudi.text
    assert "left out: tokens-train.npz" in dudi.text and "someone/" not in dudi.text.replace(REPO, "")
    assert dudi.text.endswith("nothing was uploaded: --yes does\n")
    front = yaml.safe_load(dudi.text.partition("\n---\n")[2].partition("\n---\n")[0])
    assert front["license"] == "cc-by-4.0" and "source_datasets" not in front
    manifest = json.loads((rows / "manifest.json").read_text())
    assert front["language"] == sorted(manifest["languages"])
    assert manifest["sha256"]["train"] in dudi.text and manifest["sha256"]["eval"] in dudi.text


def test_rows_go_as_they_are_with_a_manifest_that_names_no_folder(hub: Hub, pushed: Dudi, rows: Path) -> None:
    report = json.loads((rows / "report.json").read_text())
    report["notes"].append(f"read from {rows.parent / 'of' / 'someone' / 'rows.jsonl'}")
    (rows / "report.json").write_text(json.dumps(report))
    assert pushed("data", "push", str(rows), REPO, *LICENSE, "--private", "--yes") == 0, pushed.err
    (commit,), (created,) = hub.commits, hub.created
    assert created["type"] == "dataset" and created["name"] == "small"
    assert f"uploaded: {hub.address}/datasets/{REPO}\n" in pushed.text and TOKEN not in pushed.text + pushed.err
    assert commit.keys() == {"train.jsonl", "eval.jsonl", "manifest.json", "report.json", "README.md"}
    for name in ("train.jsonl", "eval.jsonl"):
        assert commit[name] == (rows / name).read_bytes()
    manifest = json.loads(commit["manifest.json"])
    assert manifest == {**json.loads((rows / "manifest.json").read_text()), "source": "rows.jsonl"}
    assert "read from rows.jsonl" in json.loads(commit["report.json"])["notes"]
    copy = rows.parent / "copy"
    copy.mkdir()
    for name, data in commit.items():
        (copy / name).write_bytes(data)
    again = load_rows(Data(source=str(copy)), 0).train
    assert [(e.x, e.y, e.l) for e in again] == [(e.x, e.y, e.l) for e in load_rows(Data(source=str(rows)), 0).train]
    assert len(again) == manifest["rows"]["train"]


def test_of_a_run_its_rows(dudi: Dudi, hub: Hub, pushed: Dudi) -> None:
    assert dudi("run", str(dudi.file), "--set", 'method={name = "sft"}', "--set", "training.max_steps=1") == 0, dudi.err
    assert pushed("data", "push", str(dudi.out), REPO, *LICENSE, "--yes") == 0, pushed.err
    assert hub.commits[0]["train.jsonl"] == (dudi.out / "data" / "train.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("there", "license", "wanted"),
    [
        (
            {"cardData": {"license": "cc-by-nc-4.0"}},
            "cc-by-4.0",
            "owner/name is under cc-by-nc-4.0 on the hub, and not",
        ),
        ({"cardData": {"license": "mit"}, "gated": "auto"}, "mit", "each reader accepts its terms on the hub"),
    ],
)
def test_the_license_of_the_source_counts(
    there: dict[str, Any], license: str, wanted: str, hub: Hub, pushed: Dudi, rows: Path
) -> None:
    changed_manifest(rows, source="owner/name", revision=COMMIT)
    hub.others["owner/name"] = there
    assert pushed("data", "push", str(rows), REPO, "--license", license, "--yes") == 2
    assert wanted in pushed.err.splitlines()[-1] and hub.commits == hub.created == []


def test_a_source_of_the_hub_is_named_and_may_say_nothing(hub: Hub, pushed: Dudi, rows: Path) -> None:
    changed_manifest(rows, source="owner/name", revision=COMMIT)
    hub.others["owner/name"] = {"cardData": {}}
    assert pushed("data", "push", str(rows), REPO, "--license", "mit", "--yes") == 0, pushed.err
    assert "owner/name names no license on the hub: that it is mit is yours to know" in pushed.text
    card = hub.commits[0]["README.md"].decode()
    assert f"[owner/name](https://huggingface.co/datasets/owner/name), commit `{COMMIT}`" in card
    assert json.loads(hub.commits[0]["manifest.json"])["source"] == "owner/name"


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Another text in a file, and its sum in the manifest."""

    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(file.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
        sums[name.removesuffix(".jsonl")] = hashlib.sha256(file.read_bytes()).hexdigest()
        changed_manifest(folder, sha256=sums)

    return change


HEAD = '"content":"'
CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "no license": (lambda _: None, (), "Give --license with the hub's name of the license"),
    "a license that forbids it": (
        lambda _: None,
        ("--license", "cc-by-nd-4.0"),
        "--license cc-by-nd-4.0: not one that is known to let a part of the data be passed on: apache-2.0, ",
    ),
    "a license of one's own": (lambda _: None, ("--license", "other"), "--license other: not one that is known"),
    "a secret in a row": (
        replaced("train.jsonl", HEAD, f"{HEAD}{TOKEN} "),
        LICENSE,
        "train.jsonl: line 1: it holds what looks like a token of Hugging Face",
    ),
    "a secret in a row held out": (
        replaced("eval.jsonl", HEAD, f"{HEAD}ghp_{'a1' * 18} "),
        LICENSE,
        "eval.jsonl: line 1: it holds what looks like a token of GitHub",
    ),
    "a path in the manifest": (
        lambda f: changed_manifest(f, note="/home/someone/x"),
        LICENSE,
        "manifest.json: it names '/home/someone/x'",
    ),
    "other rows": (
        lambda f: (f / "train.jsonl").write_text("{}\n") and None,
        LICENSE,
        "train.jsonl: changed since it was prepared",
    ),
    "no rows": (
        lambda f: (f / "manifest.json").unlink(),
        LICENSE,
        "is neither a run's folder nor one of `dudi data pr",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_may_not_be_sent(case: str, dudi: Dudi, rows: Path) -> None:
    change, options, wanted = CASES[case]
    change(rows)
    for more in ((), ("--yes",)):
        line = dudi.refused("data", "push", str(rows), REPO, *options, *more)
        assert wanted in line and TOKEN not in line


def test_a_row_may_speak_of_paths(dudi: Dudi, rows: Path) -> None:
    replaced("train.jsonl", HEAD, f"{HEAD}/home/user/notes.txt ")(rows)
    assert dudi("data", "push", str(rows), REPO, *LICENSE) == 0, dudi.err


def test_files_that_would_be_read_with_them(hub: Hub, pushed: Dudi, rows: Path) -> None:
    hub.there = [".gitattributes", "README.md", "more.parquet"]
    assert pushed("data", "push", str(rows), REPO, *LICENSE, "--yes") == 2
    assert f"{REPO} holds more.parquet (1 such), which is not of these rows" in pushed.err and hub.commits == []

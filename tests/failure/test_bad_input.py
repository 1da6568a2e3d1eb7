"""Bad input: one clear line on standard error, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.command import Dudi, command
from kit.runs import digests

from dudi.run.machine import check_devices

# ── by the real command ──────────────────────────────────────────────────────────────────────────────────────────────
REAL: list[tuple[list[str], str]] = [
    (["run", "nowhere.toml"], "no recipe 'nowhere.toml'"),
    (["check", "tiny", "--set", "method.name=dudy"], "unknown method: 'dudy'; did you mean 'dudi'?"),
    (["run", "tiny", "--set", "models.student=none/none/none", "--output", "{out}"], "models.student: no folder"),
    (["run", "tiny", "--output", "{out}", "--nproc", "2"], "--nproc says how many processes --launch starts"),
    (["check", "{folder}/deep.toml"], "deep.toml: not valid TOML: brackets nested too deeply"),
    (["check", "tiny", "--set", "chat.kwargs.token=hf_" + "a1" * 20], "looks like a hub token"),
    (["verbalize", "tiny", "--set", "training.lrr=1"], "unknown key in [training]: 'lrr'; did you mean 'lr'?"),
    (["data", "check", "{folder}/rows.jsonl"], "rows.jsonl: line 1: line: not JSON"),
    (["data", "check", "{folder}/nowhere.jsonl"], "SOURCE: no file or folder"),
    (["data", "prepare", "builtin", "--out", "{folder}"], "already holds something"),
    (["data", "prepare", "builtin", "--out", "{out}", "--format", "xml"], "--format: "),
    (["eval", "{folder}", "--benchmark", "{folder}", "--output", "{out}"], "no benchmark in "),
    (["report", "{folder}", "--output", "{out}"], "is not the folder of a run"),
    (["lab", "export", "{out}", "--weights", "{folder}"], "no finished lab build there"),
]


SLOW = ("report", "lab")  # what they import takes seconds
CASES = [pytest.param(*case, marks=pytest.mark.slow) if case[0][0] in SLOW else case for case in REAL]


@pytest.mark.parametrize("argv, said", CASES, ids=lambda case: str(case)[:40])
def test_one_line_and_status_2_by_the_real_command(tmp_path: Path, argv: list[str], said: str) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    (folder / "deep.toml").write_text("a = " + "[" * 5000)
    (folder / "rows.jsonl").write_text("{\n")
    before = digests(folder)
    done = command(*(part.replace("{out}", str(out)).replace("{folder}", str(folder)) for part in argv))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("dudi: ") and said.replace("{folder}", str(folder)) in line
    assert done.stdout == "" or argv[:2] == ["data", "check"]  # which shows its table first
    assert not out.exists() and digests(folder) == before


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["run", "check", "verbalize"])
@pytest.mark.parametrize(
    "text, said",
    [
        (None, "no recipe"),
        ("name = ", "not valid TOML"),
        ("[[", "not valid TOML"),
        ("", "missing"),
    ],
)
def test_a_recipe_that_cannot_be_read(dudi: Dudi, name: str, text: str | None, said: str) -> None:
    dudi.file.unlink()
    if text is not None:
        dudi.file.write_text(text, encoding="utf-8")
    line = dudi.refused(name, str(dudi.file))
    assert said in line and "r.toml" in line
    assert not dudi.out.exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ("training.lrr=1", "unknown key in [training]: 'lrr'; did you mean 'lr'?"),
        ("method.name=dudy", "unknown method: 'dudy'; did you mean 'dudi'?"),
        ("method.variant=x", "unknown key of method dudi: 'variant'"),
        ("method.verbalizer=x", "method dudi: verbalizer: input should be 'none', 'english'"),
        ("method.lam=2", "method dudi: lam: "),
        ("data.languages=['klingon']", "unknown language 'klingon'"),
        ("data.languages=['jv']", "no row in jv; its languages: id, ms, my, ta, th, tl, vi"),
        ("data.source=nowhere.jsonl", "data.source: no file or folder 'nowhere.jsonl'"),
        ("training.batch=0", "training.batch: "),
        ("output=a{b}", "the only placeholder is {name}"),
        ("limits.prompt=1", "no row is left: all 14 prompts are longer than limits.prompt = 1 tokens"),
        ("method.include_english=yes", "method dudi: include_english: "),
        ("models.student=", "models.student: "),
        ("no-equals-sign", "expected key=value"),
    ],
)
def test_a_value_that_cannot_be_used(dudi: Dudi, change: str, said: str) -> None:
    assert said in dudi.run_refused(change)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────
GOOD = {"language": "id", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def turns(*roles: str) -> dict[str, Any]:
    return {"language": "id", "messages": [{"role": role, "content": "t"} for role in roles]}


ROWS: list[tuple[Any, str]] = [
    (turns("user"), "assistant"),
    (turns("user", "assistant", "user"), "assistant"),
    (turns("user", "critic"), "critic"),
    ({"language": "id", "messages": "q"}, "messages"),
    (
        {"language": "id", "messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "a"}]},
        "content",
    ),
    (
        {"language": "id", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]},
        "content",
    ),
    ({"language": 3, "messages": GOOD["messages"]}, "language"),
    ({"messages": GOOD["messages"]}, "language"),
    ({"language": "klingon", "messages": GOOD["messages"]}, "klingon"),
    (["q", "a"], "object"),
    ({}, "no conversation"),
]


@pytest.mark.parametrize("bad, said", ROWS, ids=lambda case: str(case)[:60])
def test_a_broken_row_is_named(dudi: Dudi, bad: Any, said: str) -> None:
    file = dudi.folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (GOOD, bad)), encoding="utf-8")
    line = dudi.run_refused(f"data.source='{file}'")
    assert "rows.jsonl: line 2" in line and said in line


@pytest.mark.parametrize(
    "text, said", [("{", "line 1: line: not JSON"), ("", "no row is left"), ("\n\n", "no row is left")]
)
def test_a_file_without_rows(dudi: Dudi, text: str, said: str) -> None:
    file = dudi.folder / "rows.jsonl"
    file.write_text(text, encoding="utf-8")
    line = dudi.run_refused(f"data.source='{file}'")
    assert said in line.replace(f"{file}: ", "")


def test_nothing_left_after_the_filters(dudi: Dudi) -> None:
    file = dudi.folder / "rows.jsonl"
    file.write_text(json.dumps(turns("user")) + "\n", encoding="utf-8")
    line = dudi.run_refused(f"data.source='{file}'", "data.bad_rows=skip")
    assert "no row of 'id' is left to train on" in line


def test_a_row_that_is_not_there(dudi: Dudi) -> None:
    for row in ("14", "-1"):
        assert f"--row {row}: the data has rows 0 to 13" in dudi.refused("verbalize", str(dudi.file), "--row", row)


@pytest.mark.parametrize(
    "argv, said",
    [
        ("--to klingon", "unknown language 'klingon'"),
        ("--to id", "the row is in 'id' itself"),
        ("--to vi --mode english", "mode 'english' chooses no language; use --mode crosslingual"),
        ("--to jv", "[names] has no 'jv'"),
    ],
)
def test_a_language_that_cannot_be_forced(dudi: Dudi, argv: str, said: str) -> None:
    assert said in dudi.refused("verbalize", str(dudi.file), *argv.split())


# ── templates ────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_template_without_a_placeholder(dudi: Dudi) -> None:
    folder = dudi.folder / "templates"
    folder.mkdir()
    (folder / "my.toml").write_text('teacher = "{question}"\nstudent = "{question}"\n[names]\n', encoding="utf-8")
    line = dudi.run_refused(f"data.template_folder='{folder}'")
    assert "my.toml: " in line and "is missing" in line
    assert "data.template_folder: no folder" in dudi.run_refused("data.template_folder=nowhere")


@pytest.mark.parametrize(
    "text, said",
    [
        ("{% for", "the chat template refuses a conversation of turns (user)"),
        (
            "{{ raise_exception('only\nLatin') }}",
            "the chat template refuses a conversation of turns (user): only Latin",
        ),
        ("{{ messages + 3 }}", "the chat template refuses a conversation of turns (user)"),
        ("hello", "does not continue its own generation prompt"),
        ("{{ strftime_now('%d') }}", "prints today's date"),
    ],
)
def test_a_chat_template_that_cannot_be_used(dudi: Dudi, text: str, said: str) -> None:
    file = dudi.folder / "t.jinja"
    file.write_text(text, encoding="utf-8")
    assert said in dudi.run_refused(f"chat.template='{file}'")


def test_no_chat_template_at_all(dudi: Dudi) -> None:
    for name in ("student", "teacher"):
        kit.save(dudi.folder / name, kit.model(1, dtype=torch.float32), kit.tokenizer(template=None))
    sets = [f"models.{name}='{dudi.folder / name}'" for name in ("student", "teacher")]
    assert "the tokenizer has no chat template" in dudi.run_refused(*sets)
    assert 'chat.template: expected "teacher", "student" or a readable file' in dudi.run_refused("chat.template=x")


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_several_gpus_without_a_launcher(dudi: Dudi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    line = dudi.run_refused()
    assert "4 GPUs are visible, but only one process was started" in line
    assert "torchrun --nproc-per-node 4 -m dudi run" in line and "CUDA_VISIBLE_DEVICES=0" in line
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_devices()

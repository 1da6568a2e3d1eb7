"""The command line: what each command prints, a whole run in a process of its own, and what stays unloaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kit
import pytest
from kit.command import TOKEN, recipe_rows, shown, write_recipe
from typer.testing import CliRunner

from dudi import __version__, cli
from dudi.cli import app, main
from dudi.example import Example
from dudi.methods import Mode, Response, View, table_1
from dudi.recipe.read import load_recipe, shipped_recipes
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────────
def test_help_names_every_command() -> None:
    text = shown("--help")
    for name in ("methods", "recipes", "check", "run", "verbalize", "data"):
        assert re.search(rf"\b{name}\b", text)
        assert "--help" in shown(name, "--help")
    for option in ("--resume", "--output", "--set"):
        assert option in shown("run", "--help")


def test_version() -> None:
    assert shown("--version").strip() == __version__


def test_warnings_of_libraries_reach_no_screen() -> None:
    code = (
        "import warnings\nfrom dudi import cli\n"
        "cli.main = lambda: warnings.warn('goes in the next release', FutureWarning)\ncli.entry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    told = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert "goes in the next release" in told.stderr, "unless they are asked for"


def test_methods_prints_table_1() -> None:
    cells = [re.split(r"\s*[│|]\s*", line.strip(" │|")) for line in shown("methods").splitlines()]
    for row in table_1():
        assert list(row) in cells


def test_recipes_are_listed_with_their_whole_names() -> None:
    lines = [line.split() for line in shown("recipes").splitlines()]
    assert [line[0] for line in lines[1:] if line and line[0] in shipped_recipes()] == shipped_recipes()
    (row,) = (line for line in lines if line[:1] == ["qwen2.5-0.5b/dudi"])
    assert row[1:] == ["10.1", "(table", "2)", "dudi", "(full)"]


def test_nothing_is_wrapped_or_cut_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe and a log have no edge, though the terminal that they are read on later may have 80 columns."""
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "dudi", "recipes"], capture_output=True, text=True, check=True, env=env
    )
    assert "spin (original)" in done.stdout, "the last column is whole"
    table = "| " + " | ".join(f"characters per token, {language}" for language in kit.LANGUAGES) + " |\n"
    cli._page(f"{table}{'| --- ' * len(kit.LANGUAGES)}|\n")
    assert capsys.readouterr().out.startswith(table)


CHECKED = {
    "qwen2.5-0.5b/dudi": """
qwen2.5-0.5b-dudi: dudi (full)
  student Qwen/Qwen2.5-0.5B, teacher Qwen/Qwen2.5-3B-Instruct
  0.1 x sequence: spin, beta 0.1, y against y_prime
  0.5 x off_policy: reverse_kl on y
  0.5 x on_policy: reverse_kl on y_tilde, verbalizer crosslingual
  stage 1: cold-start, from student
  stage 2: dudi, from cold-start
  taken for names on the hub, and not looked up: Qwen/Qwen2.5-0.5B, Qwen/Qwen2.5-3B-Instruct
""",
    "qwen2.5-0.5b/seqkd": """
qwen2.5-0.5b-seqkd: seqkd (jsd)
  student Qwen/Qwen2.5-0.5B, teacher Qwen/Qwen2.5-3B-Instruct
  1 x off_policy: jsd on teacher
  stage 1: cold-start, from student
  stage 2: seqkd-responses, teacher writes teacher
  stage 3: seqkd, from cold-start
  taken for names on the hub, and not looked up: Qwen/Qwen2.5-0.5B, Qwen/Qwen2.5-3B-Instruct
""",
}


@pytest.mark.parametrize("name", CHECKED)
def test_check_prints_signals_and_stages(name: str) -> None:
    assert shown("check", name).strip() == CHECKED[name].strip()


@pytest.mark.parametrize("name", shipped_recipes())
def test_check_of_every_shipped_recipe(name: str) -> None:
    result = CliRunner().invoke(app, ["check", name])
    assert f": {load_recipe(name).to_method().name} (" in result.output
    folder = {"tiny": "build/tiny/student", "lab/sft-continued": "runs/lab-sft/1-sft/model"}.get(name)
    if folder:  # made by a script, and by another run
        assert f"models.student: no folder '{folder}'" in str(result.exception)
    else:
        assert result.exit_code == 0


def test_check_says_who_teaches() -> None:
    template = "(chat template of Qwen/Qwen2.5-3B-Instruct)"
    for name, who in (("sdft", f"the student's moving average {template}"), ("sft", f"- {template}")):
        assert f"student Qwen/Qwen2.5-0.5B, teacher {who}\n" in shown("check", f"qwen2.5-0.5b/{name}")
    assert "teacher Qwen/Qwen2.5-3B-Instruct\n" in shown(
        "check", "qwen2.5-0.5b/sdft", "--set", "cold_start.method.name=seqkd"
    )


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


MISSING = {
    "a misspelt folder": (
        "models.teacher={m}/teachr",
        "models.teacher: no folder '{m}/teachr'; beside it are student, teacher",
    ),
    "beside a folder that is there": (
        "models.teacher=models/teachr",
        "models.teacher: no folder 'models/teachr'; beside",
    ),
    "a path to nowhere": ("models.student=./x", "models.student: no folder './x'"),
    "no checkpoint": ("cold_start.checkpoint=runs/x/1-cold-start/model", "cold_start.checkpoint: no folder 'runs/x/1-"),
    "a run's folder": (
        "cold_start.checkpoint={m}",
        "cold_start.checkpoint: '{m}' is no model's folder: it holds no config.json",
    ),
    "a file": ("models.teacher={m}/student/config.json", "/student/config.json' is a file; give the model's folder"),
    "without weights": ("models.teacher=mine/empty", "models.teacher: 'mine/empty' holds no weights (.safetensors)"),
}


@pytest.mark.parametrize("case", MISSING)
def test_check_finds_models_that_are_not_there(
    case: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = MISSING[case]
    (tmp_path / "models").symlink_to(models)
    _empty(tmp_path / "mine" / "empty")
    monkeypatch.chdir(tmp_path)
    file = str(write_recipe(tmp_path, models))
    monkeypatch.setattr(sys, "argv", ["dudi", "check", file, "--set", change.format(m=models)])
    with pytest.raises(SystemExit) as stop:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and said.format(m=models) in line


NO_RUN = {
    "chat.template=./none.jinja": 'chat.template: expected "teacher", "student" or a readable file, found \'./none.j',
    "data.template_folder=./none": "data.template_folder: no folder './none'",
    "rollouts.engine=remote": "rollouts.engine: unknown engine: 'remote'",
    "limits.total=10": "limits.total = 10 for all languages: expected more than limits.prompt",
    "limits={prompt={default=9, th=50}, total={default=40}}": "limits.total = 40 for th: expected more than limits.pr",
    "training.eval_every=5": "training.eval_every = 5, but no row is held out",
}


@pytest.mark.parametrize("change", NO_RUN)
def test_check_refuses_what_a_run_would_refuse(
    change: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the recipe alone tells."""
    also = {"limits={": "data.languages=['id', 'th']", "training": "data.eval_rows_per_language=0"}
    given = [text for start, other in also.items() if change.startswith(start) for text in ("--set", other)]
    monkeypatch.setattr(sys, "argv", ["dudi", "check", str(write_recipe(tmp_path, models)), "--set", change, *given])
    with pytest.raises(SystemExit) as stop:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and NO_RUN[change] in line


def test_check_with_overrides() -> None:
    text = shown("check", "qwen2.5-0.5b/dudi", "--set", "method.lam=0.25", "--set", "method.verbalizer=mix")
    assert "0.75 x off_policy: reverse_kl on y\n" in text
    assert "0.25 x on_policy: reverse_kl on y_tilde, verbalizer mix\n" in text


def test_brackets_and_colons_are_no_markup(tmp_path: Path, models: Path) -> None:
    file = write_recipe(tmp_path, models)
    assert "[bold]:smile:: dudi" in shown("check", str(file), "--set", "name=[bold]:smile:")


# ── verbalize ────────────────────────────────────────────────────────────────────────────────────────────────────────
def sections(text: str) -> dict[str, tuple[str, int, str]]:
    """By name of the text: who reads it, its tokens, the text."""
    parts = re.split(r"^(?:─ )?(\S.*): read by (.+), (\d+) tokens[ ─]*$", text, flags=re.MULTILINE)
    names, readers, tokens, bodies = (parts[k::4] for k in (1, 2, 3, 4))
    rows = zip(names, readers, tokens, bodies, strict=True)
    return {name: (reader, int(n), body.strip("\n")) for name, reader, n, body in rows}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(kit.tokenizer(), None, {})


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return recipe_rows()


@pytest.mark.parametrize("row", [0, 3, 13])
@pytest.mark.parametrize("mode", list(Mode))
def test_verbalize_shows_what_each_model_reads(
    tmp_path: Path, models: Path, chat: Chat, examples: list[Example], mode: Mode, row: int
) -> None:
    text = shown("verbalize", str(write_recipe(tmp_path, models)), "--row", str(row), "--mode", mode.value)
    e = examples[row]
    v = Verbalizer(kit.LANGUAGES, 0)(View(Response.Y_TILDE, mode), e, 0, row)
    assert text.splitlines()[0] == f"row {row} ({e.id}), l = {e.l}, mode = {mode.value}, l_z = {v.l_z or '-'}"
    p_z = "p_z = x" if mode in (Mode.NONE, Mode.ENGLISH, Mode.MULTILINGUAL) or v.l_z == e.l else "p_z"
    z = "z = x" if mode is Mode.NONE else "z"
    ids = {
        "x": ("student and teacher", chat.prompt(e.x)),
        "y": ("response", chat.response(e.x, e.y)),
        p_z: ("student", chat.prompt(v.student)),
        z: ("teacher", chat.prompt(v.teacher)),
    }
    found = sections(text)
    assert found == {name: (who, len(i), chat.decode(i).strip("\n")) for name, (who, i) in ids.items()}


def test_verbalize_to_a_language(tmp_path: Path, models: Path) -> None:
    file = str(write_recipe(tmp_path, models))
    for to in ("vi", "Vietnamese"):
        text = shown("verbalize", file, "--to", to)
        assert "l = id, mode = crosslingual, l_z = vi" in text
        assert "bahasa Vietnam" in sections(text)["p_z"][2] and "bahasa Vietnam" in sections(text)["z"][2]
    mixed = shown("verbalize", file, "--to", "vi", "--mode", "mix")
    assert sections(mixed) == sections(text)


def test_verbalize_of_a_method_that_samples_nothing(tmp_path: Path, models: Path) -> None:
    file = str(write_recipe(tmp_path, models, method='name = "sft"'))
    assert list(sections(shown("verbalize", file))) == ["x", "y", "p_z = x", "z = x"]
    assert list(sections(shown("verbalize", file, "--mode", "crosslingual"))) == ["x", "y", "p_z", "z"]


# ── what stays unloaded ──────────────────────────────────────────────────────────────────────────────────────────────
SPY = """
import json, os, sys
class Spy(type(os.environ)):
    read = []
    def __getitem__(self, key):
        Spy.read.append(key)
        return super().__getitem__(key)
old = os.environ
os.environ = Spy(old._data, old.encodekey, old.decodekey, old.encodevalue, old.decodevalue)
from dudi.cli import main
sys.argv = ["dudi", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code
print(json.dumps({"code": code, "modules": sorted(sys.modules), "read": Spy.read}), file=sys.stderr)
"""
HEAVY = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
    "pandas",
    "pyarrow",
    "tokenizers",
    "huggingface_hub",
}


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "--help",
        "--version",
        "methods",
        "recipes",
        "check tiny",
        "check qwen3-0.6b/dudi",
        "run --help",
        "data --help",
    ],
)
def test_help_and_checks_load_nothing_heavy_and_read_no_token(argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPY, *argv.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN},
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["code"] in ((0, None) if argv and argv != "check tiny" else (0, 2))  # tiny's models are not made
    assert HEAVY & set(found["modules"]) == set()
    assert argv != "--help" or "pydantic" not in found["modules"], "recipes have a schema, which is half a second"
    assert {name for name in found["read"] if "TOKEN" in name or name.startswith("HF_")} == set()
    assert TOKEN not in done.stdout + done.stderr


def test_the_spy_sees() -> None:
    """The test above can fail."""
    spied = SPY.replace("from dudi.cli import main", "from dudi.cli import main; import numpy; os.getenv('HF_TOKEN')")
    done = subprocess.run([sys.executable, "-c", spied, "--version"], capture_output=True, text=True)
    found = json.loads(done.stderr.splitlines()[-1])
    assert "numpy" in found["modules"] and "HF_TOKEN" in found["read"]

"""The command line: what each command prints, a whole run in a process of its own, and what stays unloaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.command import ROWS, TOKEN, command, write_recipe
from kit.runs import digests
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from dudi import __version__
from dudi.cli import app, main
from dudi.data.load import load_rows, read_rows
from dudi.example import Example
from dudi.files import read_lines
from dudi.methods import Mode, Response, View, table_1
from dudi.recipe.read import Data, load_recipe, shipped_recipes
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer
from dudi.training import checkpoints


def shown(*argv: str) -> str:
    """What a command prints, in this process; it succeeds."""
    result = CliRunner().invoke(app, list(argv), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, by the real command."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_recipe(folder, models)
    done = command("run", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "stdout").write_text(done.stdout, encoding="utf-8")
    return folder


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


def test_methods_prints_table_1() -> None:
    cells = [re.split(r"\s*[│|]\s*", line.strip(" │|")) for line in shown("methods").splitlines()]
    for row in table_1():
        assert list(row) in cells


def test_recipes_are_listed_with_their_whole_names() -> None:
    lines = [line.split() for line in shown("recipes").splitlines()]
    assert [line[0] for line in lines[1:] if line and line[0] in shipped_recipes()] == shipped_recipes()
    (row,) = (line for line in lines if line[:1] == ["qwen2.5-0.5b/dudi"])
    assert row[1:] == ["10.1", "(table", "2)", "dudi", "(full)"]


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
    assert f": {load_recipe(name).build().name} (" in result.output
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
    data = Data(source="builtin", rows_per_language=ROWS, eval_rows_per_language=1)
    return load_rows(data, 0).train


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


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────
STAGES = {"1-cold-start": ["off_policy"], "2-dudi": ["sequence", "off_policy", "on_policy"]}


def test_a_run_prints_its_stages_losses_summary_and_folder(finished: Path) -> None:
    text = (finished / "stdout").read_text(encoding="utf-8")
    wanted = [
        "stage 1 of 2: cold-start",
        "step 2/2",
        "stage 2 of 2: dudi",
        "on_policy",
        f"run folder: {finished / 'run'}\n",
    ]
    places = [text.find(part) for part in wanted]
    assert -1 not in places and places == sorted(places)
    assert re.search(r"\(rollout \d+ s, teacher \d+ s, reference \d+ s, student \d+ s, backward \d+ s, ", text)
    assert text.count("held out: loss ") == 2, "at the end of each training"
    assert "min left" not in text and "evaluation + saving left" in text
    assert "| language | read | duplicated | filtered | broken | Zawgyi | not drawn | eval | kept | left out" in text


def test_the_recipe_of_a_run_loads_back_equal(finished: Path) -> None:
    assert load_recipe(finished / "run" / "recipe.toml") == load_recipe(finished / "r.toml")


def test_environment(finished: Path) -> None:
    found = json.loads((finished / "run" / "environment.json").read_text(encoding="utf-8"))
    assert found["packages"]["torch"] == torch.__version__ and found["packages"]["dudi"] == __version__
    assert found["argv"][-2:] == ["run", str(finished / "r.toml")]
    assert (found["processes"], found["python"]) == (1, sys.version.split()[0])


def test_no_file_of_a_run_holds_the_token(finished: Path) -> None:
    files = [file for file in finished.rglob("*") if file.is_file()]
    assert len(files) > 40
    assert not [file for file in files if TOKEN.encode() in file.read_bytes() or file.name == "training_args.bin"]


def test_the_data_of_a_run(finished: Path, examples: list[Example]) -> None:
    rows = read_rows(finished / "run" / "data")  # checks the sha256 of both
    assert rows.train == examples and len(rows.train) == 7 * ROWS
    assert sorted(e.l for e in rows.eval) == sorted(kit.LANGUAGES)
    assert {l: c.kept for l, c in rows.report.languages.items()} == dict.fromkeys(kit.LANGUAGES, ROWS)


def test_lengths(finished: Path, chat: Chat, examples: list[Example]) -> None:
    found = json.loads((finished / "run" / "lengths.json").read_text(encoding="utf-8"))
    assert set(found) == set(kit.LANGUAGES)
    for language, row in found.items():
        answers = [e.y for e in examples if e.l == language]
        tokens = sum(len(chat.tokenizer(y)["input_ids"]) for y in answers)
        density = round(sum(map(len, answers)) / tokens, 3)
        assert row == {"rows": ROWS, "left_out": 0, "cut": 0, "characters_per_token": density}


@pytest.mark.parametrize("stage", STAGES)
def test_the_metrics_of_a_stage(finished: Path, stage: str) -> None:
    folder = finished / "run" / stage
    lines = read_lines(folder / "metrics.jsonl")
    train, evals = ([line for line in lines if key in line] for key in ("signal", "eval"))
    assert [line["step"] for line in train] == [1, 2] and [line["step"] for line in evals] == [2]
    for line in train:
        assert set(line["signal"]) == set(STAGES[stage])
        total = sum(s["weight"] * s["loss"] for s in line["signal"].values())
        assert line["loss"] == pytest.approx(total, rel=1e-5), "the loss is the weighted sum of the signals' means"
        assert line["grad_norm"] > 0
        for signal in line["signal"].values():
            by_language = signal["by_language"].values()
            assert sum(row["count"] for row in by_language) == signal["count"]
            mean = sum(row["count"] * row["loss"] for row in by_language) / signal["count"]
            assert mean == pytest.approx(signal["loss"])
    assert [line["lr"] for line in train] == [1e-3, 5e-4], "linear decay without warm-up"
    times = read_lines(folder / "times.jsonl")
    assert [line["step"] for line in times] == [1, 2]
    assert all(line["student"] > 0 and line["backward"] > 0 for line in times)


def test_the_on_policy_stage_measures_rollouts_and_overlap(finished: Path) -> None:
    for line in read_lines(finished / "run" / "2-dudi" / "metrics.jsonl"):
        if "signal" not in line:
            continue
        assert set(line["rollout"]) == {"y_prime", "y_tilde"}
        for view in line["rollout"].values():
            assert (view["rows"], 0 < view["length"] <= 8) == (8 if line["step"] == 1 else 6, True)
            assert view["share_cut"] + view["eos_rate"] == pytest.approx(1)
        assert 0 <= line["measure"]["y_tilde"]["overlap"] <= 1


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_of_a_stage(finished: Path, stage: str) -> None:
    folder = finished / "run" / stage
    assert not (folder / checkpoints.STAGING).exists()
    kept = [] if stage == "1-cold-start" else ["checkpoint-1", "checkpoint-2"]  # what nothing goes on from any more
    assert [f.name for f in sorted(folder.glob("checkpoint-*"))] == kept
    assert checkpoints.is_complete(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    before = AutoModelForCausalLM.from_pretrained(load_recipe(finished / "r.toml").models.student)
    assert model.dtype is torch.float32
    assert sum(int(not torch.equal(a, b)) for a, b in zip(model.parameters(), before.parameters(), strict=True)) > 10
    assert model.generation_config.eos_token_id in (2, [2]) and model.generation_config.do_sample is False
    tok = AutoTokenizer.from_pretrained(folder / "model")
    assert tok.chat_template == kit.CHATML and tok.get_vocab() == kit.tokenizer().get_vocab()


def test_the_summary(finished: Path) -> None:
    run = finished / "run"
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert set(found) == {"run", "data", "lengths", "stages", "answers", "phases"}
    assert set(found["stages"]) == set(found["phases"]) == set(STAGES)
    for phases in found["phases"].values():
        assert {"loading", "student", "backward", "optimizer", "evaluation", "saving"} <= set(phases["seconds"])
        assert all(2**20 < peak < 2**40 for peak in phases["memory"].values())
    assert "preparing" in found["phases"]["1-cold-start"]["seconds"]
    lines = [line for line in read_lines(run / "2-dudi" / "metrics.jsonl") if "signal" in line]
    stage = found["stages"]["2-dudi"]
    assert stage["steps"] == 2
    for name in STAGES["2-dudi"]:
        moved = {"first": lines[0]["signal"][name]["loss"], "last": lines[-1]["signal"][name]["loss"]}
        assert stage["signals"][name] == pytest.approx(moved)
    text = (run / "summary.md").read_text(encoding="utf-8")
    assert all(f"| {language} |" in text for language in kit.LANGUAGES)
    assert f"| on_policy | {moved['first']:.4f} | {moved['last']:.4f} |" in text


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = digests(finished / "run")
    done = command("run", str(finished / "r.toml"), "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert "run folder:" in done.stdout and "step 1/2" not in done.stdout
    after = digests(finished / "run")
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"environment.json"}, "which says how it was called"


def repeatable(folder: Path) -> dict[str, str]:
    """What a repeated run writes byte for byte: rows, metrics and weights."""
    found = digests(folder)
    same = (f"{stage}/{name}" for stage in STAGES for name in ("metrics.jsonl", "model/model.safetensors"))
    return {name: found[name] for name in (*same, "data/train.jsonl", "lengths.json", "recipe.toml")}


def test_the_same_recipe_gives_the_same_run_also_after_a_stop(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the second stage after its first step, then resumed, from another working folder."""
    from dudi.run import pipeline as train

    file, out = str(finished / "r.toml"), tmp_path / "again"
    whole = train.DistillationTrainer.training_step
    steps = []

    def stopping(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.job.method.name)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(train.DistillationTrainer, "training_step", stopping)
    monkeypatch.setattr(sys, "argv", ["dudi", "run", file, "--output", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "dudi: stopped; go on with --resume"
    assert not (out / "2-dudi" / "model").exists() and not (out / "summary.md").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dudi", "run", file, "--output", "again", "--resume"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert steps == ["sft", "sft", "dudi", "dudi", "dudi"]
    wanted = repeatable(finished / "run")
    found = repeatable(out)
    wanted.pop("recipe.toml"), found.pop("recipe.toml")  # holds the output folder's own name
    assert found == wanted


@pytest.mark.parametrize("name", ["with space", "quote'", "both'\"", "ümlaut ไทย", "back\\slash", "[/x]"])
def test_the_output_folder_may_have_any_name(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only as far as the recipe goes: it is what names the folder."""
    from dudi.run import pipeline as train

    seen = []
    monkeypatch.setattr(train, "run", lambda recipe, *rest, **named: seen.append(recipe.output) or Path("nowhere"))
    shown("run", str(write_recipe(tmp_path, models)), "--output", str(tmp_path / name))
    assert seen == [str(tmp_path / name)]


@pytest.mark.parametrize(
    "method, stages",
    [
        (
            'name = "spin"\niterations = 2',
            ["1-cold-start", "2-spin-1-responses", "3-spin-1", "4-spin-2-responses", "5-spin-2"],
        ),
        ('name = "seqkd"', ["1-cold-start", "2-seqkd-responses", "3-seqkd"]),
        ('name = "sdft"', ["1-cold-start", "2-sdft"]),
        ('name = "gkd"', ["1-cold-start", "2-gkd"]),
        ('name = "dft"', ["1-dft"]),
    ],
)
def test_a_run_of_every_method(tmp_path: Path, models: Path, method: str, stages: list[str]) -> None:
    shown("run", str(write_recipe(tmp_path, models, method=method)))
    run = tmp_path / "run"
    assert sorted(f.name for f in run.iterdir() if f.is_dir() and f.name != "data") == stages
    for stage in stages:
        if stage.endswith("responses"):
            files = sorted((run / stage / "train").glob("*.jsonl"))
            lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
            assert sorted(line["index"] for line in lines) == list(range(7 * ROWS))
            assert all(0 < len(line["ids"]) <= 8 for line in lines)
            assert all(line["finished"] or len(line["ids"]) == 8 for line in lines)
        else:
            assert checkpoints.is_complete(run / stage / "model")
    assert (run / "summary.md").exists()


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
    assert {name for name in found["read"] if "TOKEN" in name or name.startswith("HF_")} == set()
    assert TOKEN not in done.stdout + done.stderr


def test_the_spy_sees() -> None:
    """The test above can fail."""
    spied = SPY.replace("from dudi.cli import main", "from dudi.cli import main; import numpy; os.getenv('HF_TOKEN')")
    done = subprocess.run([sys.executable, "-c", spied, "--version"], capture_output=True, text=True)
    found = json.loads(done.stderr.splitlines()[-1])
    assert "numpy" in found["modules"] and "HF_TOKEN" in found["read"]

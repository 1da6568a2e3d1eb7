"""A whole run by the real command: what it prints and writes, repeated, stopped and resumed, and of every method."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.command import ROWS, TOKEN, command, recipe_rows, shown, write_recipe
from kit.runs import digests
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi import __version__
from dudi.cli import main
from dudi.data.load import read_rows
from dudi.example import Example
from dudi.files import read_lines
from dudi.recipe.read import load_recipe
from dudi.text.chat import Chat
from dudi.training import checkpoints


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(kit.tokenizer(), None, {})


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return recipe_rows()


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, by the real command."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_recipe(folder, models)
    done = command("run", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "stdout").write_text(done.stdout, encoding="utf-8")
    return folder


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
    assert found["argv"][-3:] == ["run", str(finished / "r.toml"), "--no-rehearsal"]
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
    first = found["phases"]["1-cold-start"]
    assert {"reading", "tokenizing"} <= set(first["seconds"]) & set(first["memory"])
    lines = [line for line in read_lines(run / "2-dudi" / "metrics.jsonl") if "signal" in line]
    stage = found["stages"]["2-dudi"]
    assert stage["steps"] == 2
    for name in STAGES["2-dudi"]:
        moved = {"first": lines[0]["signal"][name]["loss"], "last": lines[-1]["signal"][name]["loss"]}
        assert stage["signals"][name] == pytest.approx(moved)
    text = (run / "summary.md").read_text(encoding="utf-8")
    assert all(f"| {language} |" in text for language in kit.LANGUAGES)
    assert f"| on_policy | {moved['first']:.4f} | {moved['last']:.4f} |" in text
    head = next(line for line in text.splitlines() if line.startswith("| seconds |"))
    assert head.startswith("| seconds | reading | tokenizing | ")


@pytest.mark.slow
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


@pytest.mark.slow
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
    monkeypatch.setattr(sys, "argv", ["dudi", "run", file, "--no-rehearsal", "--output", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    said = capsys.readouterr()
    again = f"dudi run {file} --no-rehearsal --output {out} --resume"
    assert said.err.splitlines()[-1] == f"dudi: stopped; to go on: {again}"
    assert "  stopped after step 1; it will go on from step 1, its last checkpoint (training.save_every = " in said.out
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
    monkeypatch.setattr(train, "run", lambda recipe, *_, **more: seen.append(recipe.output) or Path("nowhere"))
    shown("run", str(write_recipe(tmp_path, models)), "--output", str(tmp_path / name))
    assert seen == [str(tmp_path / name)]


@pytest.mark.parametrize(
    "method, stages",
    [
        pytest.param(
            'name = "spin"\niterations = 2',
            ["1-cold-start", "2-spin-1-responses", "3-spin-1", "4-spin-2-responses", "5-spin-2"],
            marks=pytest.mark.slow,
        ),
        pytest.param('name = "seqkd"', ["1-cold-start", "2-seqkd-responses", "3-seqkd"], marks=pytest.mark.slow),
        pytest.param('name = "sdft"', ["1-cold-start", "2-sdft"], marks=pytest.mark.slow),
        pytest.param('name = "gkd"', ["1-cold-start", "2-gkd"], marks=pytest.mark.slow),
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

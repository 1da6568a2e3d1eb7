"""The lab's build: the same weights however often it was stopped, and folders that the product itself reads."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.lab import MICRO, build_micro
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.evals.bench import read_benchmark
from dudi.lab import build as lab_build
from dudi.lab import documents as lab_documents
from dudi.lab import models as lab_models
from dudi.lab.build import build, export, hash_of, identity, read_tokenizer
from dudi.lab.models import make_model, make_optimizers, schedule, share_of_rate, train
from dudi.lab.plans import FULL, TINY, Build, Plan
from dudi.lab.rows import TAUGHT, TRAINED, lesson, plain_text
from dudi.languages import LANGUAGES
from dudi.models.load import check_model, load_config, load_model, load_tokenizer
from dudi.recipe.schema import Models
from dudi.text.chat import Chat
from dudi.text.verbalizer import TEMPLATES, Verbalizer

STUDENT, TEACHER = MICRO.models["student-small"], MICRO.models["teacher"]


def weights(folder: Path) -> dict[str, str]:
    """Model -> hash of its weights."""
    return {file.parent.name: hash_of(file.parent, "*.safetensors") for file in folder.glob("*/*.safetensors")}


def silent(line: str) -> None:
    pass


# ── the tokenizer ────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_tokenizer_gives_all_of_the_worlds_text_back(built: Path) -> None:
    tokenizer, rng, verbalizer = read_tokenizer(built), random.Random(0), Verbalizer(TRAINED)
    assert len(tokenizer) <= MICRO.vocab
    for l in LANGUAGES:
        for text in (plain_text(rng, l), lesson(rng, verbalizer)[0][-1].content):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    chat = Chat(tokenizer, None, {})
    assert chat.stop_ids == (tokenizer.eos_token_id,) and chat.pad == tokenizer.pad_token_id != tokenizer.eos_token_id


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Stopped(Exception):
    pass


def test_a_build_that_was_stopped_gives_the_same_weights(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the model and the step, and between models."""
    always_save, real = train, lab_models.loss_of
    calls = 0

    def trains(*arguments: Any) -> None:
        always_save(*arguments, save_every=0)

    def stops(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise Stopped
        return real(*arguments)

    monkeypatch.setattr(lab_build, "train", trains)
    monkeypatch.setattr(lab_models, "loss_of", stops)
    stopped = 0
    while True:
        try:
            build_micro(tmp_path / "w", monkeypatch)
            break
        except Stopped:
            stopped += 1
            assert not (tmp_path / "w" / "manifest.json").exists()
    assert stopped >= 4
    assert weights(tmp_path / "w") == weights(built) and len(weights(built)) == len(MICRO.models)
    names = {file.name for file in (tmp_path / "w").iterdir()}
    assert names == {*MICRO.models, "tokenizer", "build.json", "manifest.json"}, "nothing is left over"


@pytest.mark.slow
def test_a_stop_between_two_saves_is_no_other_weights(built: Path, tmp_path: Path) -> None:
    """By a `say` that raises, in the 100th step and before it is saved; over the border of a pool of documents."""
    tokenizer, plan = read_tokenizer(built), replace(STUDENT, steps=104, rows=2)

    def stop(line: str) -> None:
        raise Stopped(line)

    train("m", plan, tokenizer, tmp_path / "whole", 3, silent)
    with pytest.raises(Stopped, match=r"m: step 100/104, loss "):
        train("m", plan, tokenizer, tmp_path / "stopped", 3, stop, save_every=0)
    assert not (tmp_path / "stopped").exists() and (tmp_path / "stopped.part").exists()
    train("m", plan, tokenizer, tmp_path / "stopped", 3, silent)
    assert not (tmp_path / "stopped.part").exists()
    assert hash_of(tmp_path / "whole", "*.safetensors") == hash_of(tmp_path / "stopped", "*.safetensors")
    train("m", plan, tokenizer, tmp_path / "other", 4, silent)
    assert hash_of(tmp_path / "whole", "*.safetensors") != hash_of(tmp_path / "other", "*.safetensors")


def test_a_tuning_goes_on_from_the_finished_model(built: Path, tmp_path: Path) -> None:
    """From its weights as they are saved, with optimizers that know nothing of the steps before."""
    tokenizer, plan = read_tokenizer(built), replace(TEACHER, tuning=0)

    def made(name: str, plan: Plan) -> str:
        train("m", plan, tokenizer, tmp_path / name, 0, silent)
        return hash_of(tmp_path / name, "*.safetensors")

    finished, whole = made("finished", plan), made("whole", TEACHER)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "finished", dtype=torch.float32)
    optimizers = [one.state_dict() for one in make_optimizers(model, plan)]
    torch.save({"model": model.state_dict(), "optimizers": optimizers, "step": plan.steps}, tmp_path / "after.part")
    assert made("after", TEACHER) == whole != finished


@pytest.mark.slow
def test_training_lowers_the_loss(built: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train("m", replace(STUDENT, steps=200, rows=4), read_tokenizer(built), tmp_path / "m", 0, lines.append)
    first, second = (float(line.split("loss ")[1].split(",")[0]) for line in lines)
    assert second < first - 0.3


def test_schedule() -> None:
    rates = [schedule(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20) and max(rates) == rates[19] == 0.981
    assert rates[-1] == pytest.approx(0.001) and rates[19:] == sorted(rates[19:], reverse=True)
    assert all(0 < schedule(step, 3) <= 1 for step in range(3))
    tuned = replace(TEACHER, steps=1000, tuning=500)
    assert [share_of_rate(step, tuned) for step in range(1500)] == [
        *rates,
        *(0.3 * schedule(k, 500) for k in range(500)),
    ]


def test_the_vocabulary_is_padded_as_in_real_models(built: Path) -> None:
    tokenizer = read_tokenizer(built)
    for plan in (*FULL.models.values(), *TINY.models.values()):
        model = make_model(plan, tokenizer, 0)
        rows = model.get_output_embeddings().weight.shape[0]
        assert rows % 64 == 0 and len(tokenizer) <= rows < len(tokenizer) + 64
        assert model.config.model_type.removesuffix("_text") == plan.family
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_finished_build_is_left_as_it_is(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.stat().st_mtime_ns for file in built.rglob("*.safetensors")}
    build_micro(built, monkeypatch)
    assert before == {file: file.stat().st_mtime_ns for file in built.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("name", "other"),
    [("MORE_Z", {"plain": 1}), ("TUNED_Z", {"plain": 1}), ("TUNED_TAUGHT", TAUGHT), ("TUNED_ELSEWHERE", 0.4)],
)
def test_what_lessons_are_made_of_is_part_of_a_build(name: str, other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(MICRO, 0)
    monkeypatch.setattr(lab_documents, name, other)
    assert {key for key, value in identity(MICRO, 0).items() if value != before[key]} == {"lessons"}


@pytest.mark.parametrize("changed", ["seed", "plan", "world", "templates"])
def test_a_folder_of_another_build_is_refused(
    changed: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seed = MICRO, 0
    if changed == "seed":
        seed = 1
    elif changed == "plan":
        plan = replace(MICRO, models={**MICRO.models, "teacher": replace(TEACHER, steps=7)})
    else:
        wanted = json.loads((built / "build.json").read_text(encoding="utf-8"))
        monkeypatch.setattr(lab_build, "identity", lambda *_: {**wanted, changed: "0"})
    with pytest.raises(DudiError, match="holds another build") as error:
        build_micro(built, monkeypatch, plan, seed)
    assert str(error.value).startswith(f"{built}: ") and len(str(error.value).splitlines()) == 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(DudiError, match="not empty, and no build"):
        build_micro(tmp_path, monkeypatch)
    with pytest.raises(DudiError, match=r"not empty, and not an exported lab|no finished lab build"):
        export(tmp_path, tmp_path / "none")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_model_that_is_not_in_the_plan(tmp_path: Path) -> None:
    with pytest.raises(DudiError, match="unknown model: 'teecher'; did you mean 'teacher'"):
        build(tmp_path / "w", True, 0, silent, "teecher")
    assert not (tmp_path / "w").exists()


def test_one_model_alone_is_no_finished_build(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_micro(tmp_path / "w", monkeypatch, only="student-gemma")
    assert weights(tmp_path / "w") == {"student-gemma": weights(built)["student-gemma"]}
    with pytest.raises(DudiError, match="no finished lab build there"):
        export(tmp_path / "lab", tmp_path / "w")
    build_micro(tmp_path / "w", monkeypatch)
    assert weights(tmp_path / "w") == weights(built)


def test_without_weights_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DudiError) as error:
        export(tmp_path / "lab", tmp_path / "none")
    line = f"{tmp_path / 'none'}: no finished lab build there; make one with `dudi lab build {tmp_path / 'none'}`"
    assert str(error.value) == line
    assert list(tmp_path.iterdir()) == []


def test_an_export_to_where_nothing_can_be_written_is_one_line(tmp_path: Path, built: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "lab"):
        with pytest.raises(DudiError, match=r"file.*: Not a directory; use another folder"):
            export(folder, built, rows=20)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_what_a_build_says_of_itself(built: Path) -> None:
    made = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    assert made["templates"] == hash_of(TEMPLATES, "*.toml")
    assert made["weights"] == weights(built)
    assert made["tokenizer"] == hash_of(built / "tokenizer", "tokenizer.json")
    assert made["command"] == "dudi lab build FOLDER --seed 0"
    begun = json.loads((built / "build.json").read_text(encoding="utf-8"))
    assert begun == {**json.loads(json.dumps(identity(MICRO, 0))), "made": made["made"]}
    assert begun == {key: made[key] for key in begun}
    assert set(made["made"]) == set(MICRO.models)
    assert {"machine", "threads", "torch", "dudi"} <= set(made["made"]["teacher"])
    assert identity(MICRO, 0) != identity(MICRO, 1) != identity(FULL, 1) != identity(TINY, 1)


def test_a_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    def of(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return hash_of(folder, "*")

    assert of(a="1", b="2") == of(b="2", a="1")
    assert len({of(a="1", b="2"), of(a="12", b=""), of(a="1", c="2"), of(a="1"), of(), of(a="1", b="3")}) == 6


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def lab(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "lab"
    export(folder, built, rows=20, share=0.1)
    return folder


def test_exported_folders_are_ordinary_ones(lab: Path, built: Path) -> None:
    assert {file.name for file in lab.iterdir()} == {"data", "benchmark", "lab.json", *MICRO.models}
    assert not list(lab.parent.glob("*.staged"))
    assert len(read_benchmark(lab / "benchmark").items) > 400
    told = json.loads((lab / "lab.json").read_text(encoding="utf-8"))
    assert (told["rows"], told["share"], told["manifest"]["weights"]) == (20, 0.1, weights(built))


@pytest.mark.parametrize("name", MICRO.models)
def test_exported_models_load_everywhere(lab: Path, name: str) -> None:
    folder = str(lab / name)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert all(torch.isfinite(p).all() for p in model.parameters())
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.eos_token_id, generation.do_sample) == (tokenizer.eos_token_id, False)
    models = Models(student=folder)
    chat = Chat(load_tokenizer(folder, "models.student", models), None, {})
    check_model(load_config(folder, "models.student", models), folder, "models.student", models, None, chat.vocab)
    loaded = load_model(folder, "models.student", models, torch.float32)
    ids = torch.tensor([chat.prompt(_question())])
    assert loaded(ids).logits.shape[:2] == ids.shape


def _question() -> Any:
    return lesson(random.Random(0), Verbalizer(TRAINED))[0]


def test_an_export_that_is_there_is_left_as_it_is(lab: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in lab.rglob("*")}
    export(lab, tmp_path / "none")
    assert before == {file: file.stat().st_mtime_ns for file in lab.rglob("*")}


def test_an_empty_folder_is_filled(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab.staged").mkdir()
    (tmp_path / "lab.staged" / "old").write_text("left over by a stop", encoding="utf-8")
    monkeypatch.setattr(lab_build, "write_data", lambda folder, rows: folder.mkdir(parents=True))
    monkeypatch.setattr(lab_build, "write_benchmark", lambda folder, share: folder.mkdir(parents=True))
    export(tmp_path / "lab", built)
    assert {file.name for file in tmp_path.iterdir()} == {"lab"}
    assert not (tmp_path / "lab" / "old").exists() and (tmp_path / "lab" / "lab.json").exists()


def test_the_commands(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_build, "TINY", Build(MICRO.vocab, 200, {"teacher": TEACHER}))
    runner = CliRunner()
    done = runner.invoke(app, ["lab", "build", str(tmp_path / "w"), "--tiny"])
    assert done.exit_code == 0 and (tmp_path / "w" / "manifest.json").exists(), done.output
    done = runner.invoke(app, ["lab", "export", str(tmp_path / "lab"), "--weights", str(tmp_path / "w")])
    assert done.exit_code == 0 and (tmp_path / "lab" / "teacher" / "config.json").exists(), done.output
    refused = runner.invoke(app, ["lab", "export", str(tmp_path / "other"), "--weights", str(tmp_path)])
    assert isinstance(refused.exception, DudiError)


@pytest.mark.slow
def test_the_tiny_build(tmp_path: Path) -> None:
    build(tmp_path / "w", True, 0, silent)
    assert set(weights(tmp_path / "w")) == set(TINY.models)
    export(tmp_path / "lab", tmp_path / "w", rows=20, share=0.1)
    for name in TINY.models:
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "lab" / name).num_parameters() > 0

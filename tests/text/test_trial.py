"""`dudi data check --tokenizer`: rows tried through template and tokenizer, their lengths, limits that fit them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import kit
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from dudi.data.cli import app
from dudi.errors import DudiError
from dudi.example import Example
from dudi.recipe.read import load_recipe
from dudi.recipe.schema import Limits
from dudi.run.limits import Verbalizing
from dudi.signals import Mode, Response, View
from dudi.text.chat import Chat
from dudi.text.trial import Trial, percentile
from dudi.text.verbalizer import TEMPLATES, Verbalizer
from dudi.training.window import encode_rows

STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + kit.CHATML
REWRITING = kit.CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m.role == 'user' else '-' }}")


def test_percentiles_by_counting() -> None:
    values = [random.Random(k).randrange(50) for k in range(37)]
    for percent in (1, 50, 90, 99, 100):
        found = percentile(values, percent)
        assert found in values
        assert sum(v <= found for v in values) >= len(values) * percent / 100 > sum(v < found for v in values)


def examples(count: int = 300) -> list[Example]:
    draw = random.Random(0)
    made = [("id", f"{'a ' * draw.randrange(60)}?", "b " * ceil(draw.paretovariate(1))) for _ in range(count)]
    made += [("th", "q", "a")] * 3
    return [Example(kit.message(x), y[:400], l, f"rows.jsonl:{k}") for k, (l, x, y) in enumerate(made)]


def test_the_proposed_limits_cut_at_most_two_percent() -> None:
    trial = Trial(Chat(kit.tokenizer(), None, {}))
    for example in examples():
        trial.add(example)
    prompt, total, teacher = trial.limits()
    assert teacher == {}, "without a verbalizer there is no z"
    limits = Limits(prompt={"default": 1, **prompt}, total={"default": 2, **total})
    found = encode_rows(examples(), trial.chat, limits)
    for l, count in (("id", 300), ("th", 3)):
        assert found.left_out[l] + found.cut[l] <= 0.02 * count
        assert limits.of("total", l) > limits.of("prompt", l)
    shorter = {l: n - 32 for l, n in total.items()}
    assert (
        encode_rows(examples(), trial.chat, limits.model_copy(update={"total": {"default": 1, **shorter}})).cut["id"]
        > 3
    )
    (x, y) = [row for row in trial.table() if row[0] == "id"]
    rows = encode_rows(examples(), trial.chat, Limits(prompt=9999, total=99999)).rows
    for row, lengths in (
        (x, [len(r.x) for r in rows if r.example.l == "id"]),
        (y, [len(r.y) for r in rows if r.example.l == "id"]),
    ):
        assert row[2:] == tuple(map(str, (300, *(percentile(lengths, p) for p in (50, 90, 99)), max(lengths))))


# ── p_z and z ────────────────────────────────────────────────────────────────────────────────────────────────────────
def tried(mode: Mode, rows: Sequence[Example]) -> Trial:
    trial = Trial(Chat(kit.tokenizer(), None, {}), Verbalizer(kit.LANGUAGES), View(Response.Y_TILDE, mode))
    for example in rows:
        trial.add(example)
    return trial


def counted(trial: Trial, example: Example) -> list[tuple[int, int]]:
    """Tokens of (p_z, z) of a row for all that its mode can draw, written out: no draw, no choice of the longest."""
    assert trial.verbalizer is not None
    l, mode = example.l, trial.view.verbalizer
    others = [l_z for l_z in (*kit.LANGUAGES, "en") if l_z != l]
    named = {
        Mode.ENGLISH: [(Mode.ENGLISH, None)],
        Mode.MULTILINGUAL: [(Mode.MULTILINGUAL, None)],
        Mode.CROSSLINGUAL: [(Mode.CROSSLINGUAL, l_z) for l_z in others],
        Mode.MIX: [*((Mode.CROSSLINGUAL, l_z) for l_z in others), (Mode.MULTILINGUAL, None)],
    }[mode]
    made = [trial.verbalizer(View(Response.Y_TILDE, one), example, 0, 0, l_z) for one, l_z in named]
    return [(len(trial.chat.prompt(v.student)), len(trial.chat.prompt(v.teacher))) for v in made]


@pytest.mark.parametrize("mode", [Mode.ENGLISH, Mode.MULTILINGUAL, Mode.CROSSLINGUAL, Mode.MIX])
def test_p_z_and_z_by_counting(mode: Mode) -> None:
    """Against every l_z of every row. Only merges at the borders can make another l_z the longest of a later row."""
    rows = kit.builtin()
    trial = tried(mode, rows)
    found = {(l, what): row for l, what, *row in trial.table()}
    rewritten = mode in (Mode.CROSSLINGUAL, Mode.MIX)
    assert {what for _, what in found} == {"x", "y", "z"} | ({"p_z"} if rewritten else set())
    for l in kit.LANGUAGES:
        of_l = [counted(trial, example) for example in rows if example.l == l]
        for what, place in (("p_z", 0), ("z", 1))[not rewritten :]:
            longest = [max(one[place] for one in row) for row in of_l]
            count, *numbers = (int(number) for number in found[l, what])
            wanted = [*(percentile(longest, p) for p in (50, 90, 99)), max(longest)]
            assert count == len(of_l)
            assert all(0 <= w - n <= 2 for n, w in zip(numbers, wanted, strict=True)), (l, what, numbers, wanted)
            shortest = [min(one[place] for one in row) for row in of_l]
            assert not rewritten or numbers[-1] > max(shortest), "which l_z is named matters here"


def test_the_proposed_limit_of_z_takes_the_term_from_one_percent() -> None:
    """As a run counts it (`run.limits`)."""
    rows = [replace(e, id=f"{e.id}/{k}") for k in range(3) for e in kit.builtin()]
    trial = tried(Mode.CROSSLINGUAL, rows)
    assert trial.verbalizer is not None
    *_, teacher = trial.limits()
    wide = Limits(prompt=4000, total=9000, verbalizer=4000)
    kept = encode_rows(rows, trial.chat, wide).rows
    verbalizing = Verbalizing(trial.chat, trial.verbalizer, trial.view, True)
    proposed = wide.model_copy(update={"teacher_prompt": {"default": 1, **teacher}})
    assert sorted(teacher) == sorted(kit.LANGUAGES) and verbalizing.lost(proposed, kept) == []
    shorter = wide.model_copy(update={"teacher_prompt": {"default": 1, **{l: n - 18 for l, n in teacher.items()}}})
    assert len(verbalizing.lost(shorter, kept)) == len(kit.LANGUAGES)


def test_a_language_without_a_template_is_said_and_the_others_measured(tmp_path: Path) -> None:
    rows = [Example(kit.message("q"), "a", l, "r") for l in ("km", "id", "km")]
    trial = tried(Mode.CROSSLINGUAL, rows)
    assert [row[:3] for row in trial.table() if row[0] == "km"] == [("km", "x", "2"), ("km", "y", "2")]
    assert [row[1] for row in trial.table() if row[0] == "id"] == ["x", "y", "p_z", "z"]
    assert [line for line in trial.details() if "p_z" in line] == [
        "km: p_z and z cannot be made: no verbalizer template for language 'km': add km.toml to a folder named in"
        " data.template_folder"
    ]


def test_characters_that_the_tokenizer_does_not_know_are_counted() -> None:
    words = {token: k for k, token in enumerate(["<unk>", "<end>", "kamu", "siapa"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>")
    turns = "{% for m in messages %}{{ m.content }} {{ '<end> ' if m.role == 'assistant' }}{% endfor %}"
    for unknown, wanted in (
        ("<unk>", ["th: 1 of 2 kept rows hold characters that the tokenizer does not know"]),
        ("<end>", []),
    ):
        tok.unk_token = unknown
        trial = Trial(Chat(tok, turns, {}))
        for y in ("siapa", "ใคร"):
            trial.add(Example(kit.message("kamu"), y, "th", "r"))
        assert [line for line in trial.details() if "does not know" in line] == wanted


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────
def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kit.tokenizer(template=STRICT).save_pretrained(tmp_path / "model")
    rows = [
        ("plain", kit.message("q", "a")), ("with-system", kit.message("q", "a", system="s")),
        ("again", kit.message("q", "b", system="s")), ("two", kit.message("q", "a", "r", "b")),
    ]  # fmt: skip
    text = "".join(
        json.dumps({"id": i, "language": "th", "messages": [m.as_dict() for m in x]}) + "\n" for i, x in rows
    )
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "rewriting.jinja").write_text(REWRITING)
    return tmp_path


def run(folder: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["check", str(folder / "rows.jsonl"), *options], catch_exceptions=True)


def test_rows_that_the_template_refuses_are_found_beforehand(folder: Path) -> None:
    found = run(folder, "--tokenizer", str(folder / "model"))
    assert isinstance(found.exception, DudiError)
    reason = "the chat template refuses a conversation of turns (system, user): no system turn"
    reason += "; chat.merge_system (--merge-system) puts a system turn into the user's"
    assert str(found.exception) == f"with-system: {reason} (2 refused rows in all)"
    assert f"th: 2 kept rows refused: {reason}" in lines(found.output)
    assert [line.split()[:3] for line in lines(found.output) if line.startswith("th x") or line.startswith("th y")] == [
        ["th", "x", "2"],
        ["th", "y", "2"],
    ]


def test_a_merged_system_turn_and_a_file_of_ones_own(folder: Path) -> None:
    found = run(folder, "--tokenizer", str(folder / "model"), "--merge-system")
    assert found.exception is None and "refused" not in found.output
    found = run(folder, "--tokenizer", str(folder / "model"), "--template", str(folder / "rewriting.jinja"))
    assert found.exception is None
    (line,) = [line for line in lines(found.output) if "refused" in line]
    assert line.startswith(
        'th: 1 kept rows refused under loss_on = "all_assistant": the chat template writes earlier turns'
    )
    proposed = [line.strip() for line in found.output.splitlines() if "limits." in line]
    recipe = load_recipe("tiny", [line.replace("limits.prompt", "limits.prompt") for line in proposed])
    assert recipe.limits.of("total", "th") > recipe.limits.of("prompt", "th") > 1


def test_values_for_the_template(folder: Path) -> None:
    template = "{% if mode != 'b' %}{{ raise_exception('mode') }}{% endif %}" + kit.CHATML
    (folder / "t.jinja").write_text(template)
    options = ("--tokenizer", str(folder / "model"), "--template", str(folder / "t.jinja"))
    assert "mode" in str(run(folder, *options).exception)
    assert run(folder, *options, "--chat", "mode=b").exception is None
    assert "expected key=value" in str(run(folder, *options, "--chat", "mode").exception)
    assert "--template: expected a readable file" in str(run(folder, *options[:3], "nowhere").exception)
    assert "give the --tokenizer" in str(run(folder, "--chat", "mode=b").exception)


def test_the_mode_and_the_templates_of_p_z_and_z(folder: Path) -> None:
    options = ("--tokenizer", str(folder / "model"), "--merge-system")

    def rows(*more: str) -> dict[str, int]:
        found = run(folder, *options, *more)
        assert found.exception is None
        table = [line.split() for line in lines(found.output) if line.startswith("th ")]
        return {cells[1]: int(cells[-1]) for cells in table if not cells[1].isdigit()}

    assert list(rows()) == ["x", "y", "p_z", "z"]
    assert list(rows("--mode", "none")) == ["x", "y"] and list(rows("--mode", "english")) == ["x", "y", "z"]
    own = folder / "templates"
    own.mkdir()
    text = (TEMPLATES / "th.toml").read_text(encoding="utf-8")
    (own / "th.toml").write_text(text.replace("{demonstration}", "{demonstration}" + " a" * 100), encoding="utf-8")
    assert rows("--template-folder", str(own))["z"] > rows()["z"] + 90
    assert rows("--languages", "th,vi")["z"] <= rows()["z"]
    assert "--template-folder: no folder" in str(run(folder, *options, "--template-folder", "nowhere").exception)
    assert "give the --tokenizer" in str(run(folder, "--mode", "english").exception)


def test_without_a_template_special_tokens_are_still_counted(folder: Path) -> None:
    kit.tokenizer(template=None).save_pretrained(folder / "base")
    found = run(folder, "--tokenizer", str(folder / "base"))
    assert found.exception is None
    assert any(line.startswith("note:") and "has no chat template" in line for line in lines(found.output))
    assert "no kept row holds a special token of the tokenizer" in found.output

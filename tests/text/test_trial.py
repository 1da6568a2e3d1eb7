"""`dudi data check --tokenizer`: rows tried through template and tokenizer, their lengths, limits that fit them."""

from __future__ import annotations

import json
import random
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
from dudi.text.chat import Chat
from dudi.text.trial import Trial, percentile
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
    prompt, total = trial.limits()
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


def test_without_a_template_special_tokens_are_still_counted(folder: Path) -> None:
    kit.tokenizer(template=None).save_pretrained(folder / "base")
    found = run(folder, "--tokenizer", str(folder / "base"))
    assert found.exception is None
    assert any(line.startswith("note:") and "has no chat template" in line for line in lines(found.output))
    assert "no kept row holds a special token of the tokenizer" in found.output

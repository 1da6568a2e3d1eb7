"""What limits, template and tokenizer do to the rows is known and said before the first stage, by language."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kit
import pytest
import torch

from dudi.errors import DudiError
from dudi.example import Example
from dudi.methods import build_method
from dudi.models.load import load_config
from dudi.recipe.read import load_recipe, parse_recipe
from dudi.recipe.schema import Limits, Recipe
from dudi.run.limits import Verbalizing, kept_and_left_out
from dudi.run.pipeline import run
from dudi.run.prepare import Prepared, prepare
from dudi.run.settings import check_limits
from dudi.run.summary import markdown
from dudi.signals import Mode, Response, View
from dudi.text.chat import Chat
from dudi.text.verbalizer import TEMPLATES, Verbalizer
from dudi.training.window import Row, WindowBuilder, encode_rows

VIEW = View(Response.Y_TILDE, Mode.CROSSLINGUAL)
MULTILINGUAL = View(Response.Y_TILDE, Mode.MULTILINGUAL)
WIDE = Limits(prompt=4000, total=8000, teacher_prompt=100_000)


def lengths(chat: Chat, verbalizer: Verbalizer, view: View, example: Example, teacher: bool) -> list[int]:
    """Tokens of p_z (or z) for each l_z there is, the long way."""
    made = [verbalizer(view, example, 0, 0, l_z) for l_z in sorted({*kit.LANGUAGES, "en"} - {example.l})]
    return [len(chat.prompt(v.teacher if teacher else v.student)) for v in made]


@pytest.fixture(scope="module")
def rows() -> tuple[Row, ...]:
    return encode_rows(kit.builtin(), Chat(kit.tokenizer(), None, {}), WIDE).rows


@pytest.fixture
def verbalizing() -> Verbalizing:
    return Verbalizing(Chat(kit.tokenizer(), None, {}), Verbalizer(kit.LANGUAGES), VIEW, True)


def test_the_default_is_what_p_z_adds_at_most(verbalizing: Verbalizing, rows: Sequence[Row]) -> None:
    """With limits.prompt at the length of the longest x, no p_z is too long, and one is as long as it may be."""
    for l in kit.LANGUAGES:
        of_l = [row for row in rows if row.example.l == l]
        limits = Limits(prompt=max(len(row.x) for row in of_l), total=8000, teacher_prompt=100_000)
        found = verbalizing.limits(limits, of_l).of("verbalizer", l)
        adds = [
            n - len(row.x)
            for row in of_l
            for n in lengths(verbalizing.chat, verbalizing.verbalizer, VIEW, row.example, False)
        ]
        assert min(adds) < found <= max(adds)
        filled = verbalizing.limits(limits, of_l)
        assert verbalizing.lost(filled, of_l) == []
        assert filled.of("verbalizer", l) == found and isinstance(filled.verbalizer, dict)


def test_a_given_limit_stays(verbalizing: Verbalizing, rows: Sequence[Row]) -> None:
    for given in (7, {"default": 64, "my": 80}):
        assert verbalizing.limits(Limits(verbalizer=given), rows).verbalizer == given


def test_rows_that_lose_their_term_are_counted_as_they_are(verbalizing: Verbalizing, rows: Sequence[Row]) -> None:
    """Against every p_z and z of every row."""
    for limits in (
        Limits(prompt=80, verbalizer=40, total=8000, teacher_prompt=100_000),
        Limits(prompt=4000, verbalizer=4000, total=8000, teacher_prompt=300),
    ):
        chat, v = verbalizing.chat, verbalizing.verbalizer
        kept = [row for row in rows if len(row.x) <= limits.of("prompt", row.example.l)]
        wanted: dict[str, list[int]] = {}
        for row in kept:
            p_z = [
                n
                for n in lengths(chat, v, VIEW, row.example, False)
                if n > limits.of("prompt", "id") + limits.of("verbalizer", "id")
            ]
            z = [n for n in lengths(chat, v, VIEW, row.example, True) if n > limits.of("teacher_prompt", "id")]
            if p_z or z:
                wanted.setdefault(row.example.l, []).append(max(p_z + z))
        lines = verbalizing.lost(limits, kept)
        assert wanted and len(lines) == len(wanted)
        for line in lines:
            l = line.split(":")[0]
            of_l = sum(row.example.l == l for row in kept)
            assert f"{l}: {len(wanted[l])} of {of_l} rows lose their y_tilde term" in line
            assert f"the longest has {max(wanted[l])} tokens" in line


def test_the_other_half_of_a_mix_counts_too(rows: Sequence[Row], tmp_path: Path) -> None:
    """Its z names the row's own language, here with the longest name."""
    text = (TEMPLATES / "id.toml").read_text(encoding="utf-8").splitlines()
    names = ['id = "' + "bahasa " * 60 + '"' if line.startswith("id = ") else line for line in text]
    (tmp_path / "id.toml").write_text("\n".join(names), encoding="utf-8")
    chat, verbalizer = Chat(kit.tokenizer(), None, {}), Verbalizer(kit.LANGUAGES, folder=tmp_path)
    of_id = [row for row in rows if row.example.l == "id"]
    room = max(n for row in of_id for n in lengths(chat, verbalizer, VIEW, row.example, True))
    limits = Limits(prompt=4000, verbalizer=4000, total=8000, teacher_prompt=room + 10)
    mixed = [
        Verbalizing(chat, verbalizer, View(Response.Y_TILDE, mode), True) for mode in (Mode.CROSSLINGUAL, Mode.MIX)
    ]
    own = [len(chat.prompt(verbalizer(MULTILINGUAL, row.example, 0, 0).teacher)) for row in of_id]
    over = [n for n in own if n > room + 10]
    crosslingual, mix = (one.lost(limits, [*of_id, rows[-1]]) for one in mixed)
    assert over and crosslingual == []
    assert [line.split(":")[0] for line in mix] == ["id"] and f"{len(over)} of {len(of_id)} rows lose" in mix[0]


def test_limits_that_leave_no_row_with_a_term_are_refused(verbalizing: Verbalizing, rows: Sequence[Row]) -> None:
    narrow = WIDE.model_copy(update={"teacher_prompt": 10, "verbalizer": 9999})
    with pytest.raises(DudiError, match=r"leave no row with a y_tilde term: .*limits\.teacher_prompt = 10"):
        verbalizing.lost(narrow, rows)
    of_id = [row for row in rows if row.example.l == "id"]
    (line,) = verbalizing.lost(narrow, of_id, held_out=True)  # said, but there is something to train on
    assert line.startswith(
        f"id: {len(of_id)} of {len(of_id)} evaluation rows lose their y_tilde term under limits.teac"
    )


def test_without_a_limit_no_p_z_is_dropped(rows: Sequence[Row]) -> None:
    """A window built with limits that nobody filled in."""
    row = max(rows, key=lambda row: len(row.x))
    limits = Limits(prompt=len(row.x), total=8000, teacher_prompt=100_000)
    chat = Chat(kit.tokenizer(), None, {})
    builder = WindowBuilder(chat, Verbalizer(kit.LANGUAGES), limits, kit.Forced(chat), 0)
    window = builder.build(kit.model(1), build_method({"name": "dudi"}).signals, [row], [1.0], 0)
    assert not window.dropped


@pytest.mark.parametrize(
    "prompt, total, language", [(100, 100, "id"), ({"default": 10, "my": 90}, 50, "my"), (5, 4, "id")]
)
def test_a_total_that_leaves_no_room_is_refused(prompt: Any, total: int, language: str) -> None:
    with pytest.raises(DudiError, match=rf"limits\.total = {total} for {language}: expected more than limits\.prompt"):
        check_limits(Limits(prompt=prompt, total=total), ["id", "my"])
    check_limits(Limits(prompt=prompt, total=total + 100), ["id", "my"])


def test_what_is_left_out_is_said_by_language() -> None:
    chat = Chat(
        kit.tokenizer(),
        kit.CHATML.replace(
            "{{ m['content'] }}", "{{ raise_exception('no X') if m['content'] == 'X' }}{{ m['content'] }}"
        ),
        {},
    )
    texts = [
        ("id", "a", "b"),
        ("id", "a " * 200, "b"),
        ("id", "X", "b"),
        ("th", "a " * 200, "b"),
        ("vi", "a", "b " * 300),
        ("ms", "a", "b"),
    ]
    rows = encode_rows([Example(kit.message(x), y, l, "r") for l, x, y in texts], chat, Limits(prompt=100, total=200))
    lines = kept_and_left_out(rows, ("id", "ms", "th", "vi"), Limits(prompt=100, total=200), "training")
    assert lines == [
        "id: 1 of 3 training rows; 1 left out (33%): x is longer than limits.prompt = 100;"
        " 1 refused: the chat template refuses a conversation of turns (user): no X",
        "th: 0 of 1 training rows; 1 left out (100%): x is longer than limits.prompt = 100; no row of th is left",
        "vi: 1 of 1 training rows; 1 answers cut (100%) at limits.total = 200",
    ]
    assert kept_and_left_out(rows, ("ms",), Limits(), "training")[0].endswith("none too long, no answer cut")


# ── a recipe ─────────────────────────────────────────────────────────────────────────────────────────────────────────
GEMMA = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + kit.CHATML


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    kit.save(made / "student", kit.model(1, rows=kit.VOCAB, dtype=torch.float32), kit.tokenizer())
    kit.save(made / "teacher", kit.model(2, rows=kit.VOCAB, dtype=torch.float32), kit.tokenizer(template=GEMMA))
    return made


def recipe(folder: Path, method: dict[str, Any], rows: Sequence[dict[str, Any]] | None = None, **tables: Any) -> Recipe:
    source = "builtin"
    if rows is not None:
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = str(file)
    models = {"student": str(folder / "student"), "teacher": str(folder / "teacher")}
    data = {"source": source, **tables.pop("data", {})}
    tables["limits"] = {"teacher_prompt": 3000, **tables.get("limits", {})}
    return parse_recipe({"name": "r", "method": method, "models": models, "data": data, **tables}, "a test")


def row(id: str, *turns: str, system: str | None = None) -> dict[str, Any]:
    messages = [m.as_dict() for m in kit.message(*turns, system=system)]
    return {"id": id, "language": "th", "messages": messages}


def test_a_row_that_the_template_refuses_is_named_or_skipped_as_bad_rows_says(folder: Path) -> None:
    rows = [row("ok", "a", "b"), row("with-system", "a", "b", system="s")]
    for bad_rows in ({}, {"bad_rows": "error"}):
        with pytest.raises(DudiError, match=r'^with-system: .*no system turn; .*; data\.bad_rows = "skip"'):
            prepare(recipe(folder, {"name": "sft"}, rows, data=bad_rows))
    found = prepare(recipe(folder, {"name": "sft"}, rows, data={"bad_rows": "skip"}))
    assert [r.example.id for r in found.train.rows] == ["ok"]
    ((reason, count),) = found.lengths()["th"]["refused"].items()
    assert reason.startswith("the chat template refuses a conversation of turns (system, user): no system turn")
    assert count == 1
    assert "th: 1 of 2 training rows; 1 refused: the chat template refuses" in found.said[0]
    merged = prepare(recipe(folder, {"name": "sft"}, rows, chat={"merge_system": True}))
    assert [r.example.id for r in merged.train.rows] == ["ok", "with-system"]
    assert "user\ns\n\na" in merged.chat.decode(merged.train.rows[1].x)


def test_earlier_answers_are_tried_only_where_they_are_trained_on(folder: Path) -> None:
    rewriting = folder / "rewriting.jinja"
    rewriting.write_text(
        kit.CHATML.replace("{{ m['content'] }}", "{{ m['content'] if loop.last or m.role == 'user' else '-' }}")
    )
    rows = [row("one", "a", "b"), row("two", "a", "b", "c", "d")]
    chat = {"template": str(rewriting)}
    last = prepare(recipe(folder, {"name": "sft"}, rows, chat=chat))
    assert [r.example.id for r in last.train.rows] == ["one", "two"] and last.train.rows[1].turns is None
    for method in ({"name": "sft", "loss_on": "all_assistant"}, {"name": "dudi"}):
        cold = (
            {} if method["name"] == "sft" else {"cold_start": {"method": {"name": "sft", "loss_on": "all_assistant"}}}
        )
        with pytest.raises(DudiError, match=r"^two: the chat template writes earlier turns in another way"):
            prepare(recipe(folder, method, rows, chat=chat, **cold))
    found = prepare(
        recipe(folder, {"name": "sft", "loss_on": "all_assistant"}, rows, chat=chat, data={"bad_rows": "skip"})
    )
    (kept,) = found.train.rows
    assert kept.turns is not None and kept.turns[0] == (*kept.x, *kept.y)


def test_limits_are_filled_in_and_what_they_do_is_said(folder: Path) -> None:
    def made(**limits: Any) -> Prepared:
        return prepare(
            recipe(
                folder, {"name": "dudi"}, limits={"prompt": 400, "total": 800, **limits}, chat={"template": "student"}
            )
        )

    filled = made()
    assert isinstance(filled.recipe.limits.verbalizer, dict) and set(filled.languages) < set(
        filled.recipe.limits.verbalizer
    )
    assert not [line for line in filled.said if "lose" in line]
    short = [
        line
        for line in made(verbalizer=3, prompt=150).said
        if "lose their y_tilde term under limits.verbalizer = 3" in line
    ]
    assert short
    with pytest.raises(DudiError, match=r"limits\.teacher_prompt = 10"):
        made(teacher_prompt=10)
    with pytest.raises(DudiError, match=r"limits\.total = 300 for \w+: expected more than limits\.prompt = 400"):
        made(total=300)


def test_the_config_of_a_model_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where limits that were filled in are compared with the positions afterwards."""
    read: list[str] = []
    real = load_config
    monkeypatch.setattr(
        "dudi.run.prepare.load_config", lambda path, what, *rest: read.append(what) or real(path, what, *rest)
    )
    monkeypatch.setattr("dudi.models.load.load_config", lambda *_: pytest.fail("read again"))
    given = {"cold_start": {"checkpoint": str(folder / "student")}, "chat": {"template": "student"}}
    found = prepare(recipe(folder, {"name": "dudi"}, limits={"prompt": 400, "total": 800}, **given))
    assert found.recipe.limits != found.given.limits
    assert read == ["models.student", "models.teacher", "cold_start.checkpoint"]


def test_stops_of_student_and_teacher_are_one(folder: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    for name, ids in (("student", [2]), ("teacher", [2, 1])):
        kit.save(tmp_path / name, kit.model(1, rows=kit.VOCAB, dtype=torch.float32), kit.tokenizer())
        GenerationConfig(eos_token_id=ids).save_pretrained(tmp_path / name)
    assert prepare(recipe(tmp_path, {"name": "seqkd"}, [row("a", "q", "a")])).chat.stop_ids == (1, 2)


@pytest.mark.parametrize("rows, extra, vocab", [(kit.VOCAB, 1, kit.VOCAB), (kit.VOCAB + 8, 1, kit.VOCAB + 1)])
def test_a_tokenizer_with_a_token_more_than_the_models_have_embeddings(
    rows: int, extra: int, vocab: int, tmp_path: Path
) -> None:
    tok = kit.tokenizer()
    tok.add_tokens(["<image>"])
    for name in ("student", "teacher"):
        kit.save(tmp_path / name, kit.model(1, rows=rows, dtype=torch.float32), tok)
    data = [row("a", "q", "a"), row("pictured", "<image> q", "a")]
    if vocab == kit.VOCAB + 1:
        assert prepare(recipe(tmp_path, {"name": "dudi"}, data)).chat.vocab == vocab
        return
    with pytest.raises(DudiError, match=r"^pictured: the text holds '<image>'"):
        prepare(recipe(tmp_path, {"name": "dudi"}, data))
    found = prepare(recipe(tmp_path, {"name": "dudi"}, data, data={"bad_rows": "skip"}))
    assert found.chat.vocab == vocab and [r.example.id for r in found.train.rows] == ["a"]


def test_a_teacher_of_the_family_with_more_added_tokens(folder: Path, tmp_path: Path) -> None:
    kit.save(tmp_path / "student", kit.model(1, rows=kit.VOCAB + 4, dtype=torch.float32), kit.tokenizer())
    tok = kit.tokenizer()
    tok.add_tokens(["<tool>", "<think>"])
    kit.save(tmp_path / "teacher", kit.model(2, rows=kit.VOCAB + 8, dtype=torch.float32), tok)
    assert prepare(recipe(tmp_path, {"name": "dudi"}, [row("a", "q", "a")])).chat.vocab == kit.VOCAB


def test_the_summary_says_what_was_refused() -> None:
    counts = {"read": 2, "duplicated": 0, "filtered": {}, "broken": {}, "zawgyi": 0, "undrawn": 0, "eval": 0, "kept": 2}
    lengths = {"rows": 1, "left_out": 0, "cut": 0, "characters_per_token": 1.0, "refused": {"no system turn": 1}}
    text = markdown(
        {"run": "r", "data": {"th": counts}, "lengths": {"th": lengths}, "stages": {}, "answers": {}, "phases": {}}
    )
    assert "- th: refused: no system turn 1" in text.splitlines()


def test_what_p_z_adds_counts_among_the_positions(tmp_path: Path) -> None:
    """Computed, so it is known only after the rows are read."""
    for name in ("student", "teacher"):
        made = kit.model(1, rows=kit.VOCAB, dtype=torch.float32)
        made.config.max_position_embeddings = 420
        kit.save(tmp_path / name, made, kit.tokenizer())
    limits = {"prompt": 380, "total": 400, "rollout": 30, "teacher_prompt": 300}
    with pytest.raises(DudiError, match=r"420 positions, .*limits\.verbalizer"):
        prepare(recipe(tmp_path, {"name": "dudi"}, limits=limits))
    prepare(recipe(tmp_path, {"name": "dudi"}, limits={**limits, "prompt": 300}))


def test_a_run_whose_limits_were_filled_in_is_resumed_with_the_recipe_as_given(folder: Path, tmp_path: Path) -> None:
    given = recipe(
        folder,
        {"name": "dudi"},
        chat={"template": "student"},
        data={"rows_per_language": 1},
        limits={"rollout": 4},
        cold_start={"method": {"name": "none"}},
        training={"max_steps": 1, "batch": 4},
        output=str(tmp_path / "run"),
    )
    said: list[str] = []
    run(given, say=said.append)
    assert any("training rows: none too long" in line for line in said)
    assert load_recipe(tmp_path / "run" / "recipe.toml") == given and given.limits.verbalizer is None
    assert (tmp_path / "run" / "data" / "tokens-train.npz").is_file()
    run(given, resume=True, say=said.append)

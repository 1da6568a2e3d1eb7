"""Warnings of collapsed rollouts: shares and spans by hand, in a training, and the same after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kit
import pytest
from kit.stops import StopAt, Stopped

from dudi.example import Example, Message
from dudi.files import read_lines
from dudi.methods import build_method, views
from dudi.rollouts import Rollout
from dudi.run.pipeline import resume_stage
from dudi.run.summary import markdown, summarize
from dudi.training import collapse
from dudi.training.collapse import ENDS, ENOUGH, THRESHOLDS, Collapse, repeats, script, spans

TEXTS = {"th": "สวัสดีครับ วันนี้อากาศดี", "my": "မင်္ဂလာပါ ခင်ဗျာ ကောင်းပါသလား", "en": "Good morning to all of you", "": "12, 3!"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEXTS["th"], "THAI"),
        (TEXTS["my"], "MYANMAR"),
        (TEXTS["en"], "LATIN"),
        ("Xin chào các bạn", "LATIN"),
        (TEXTS[""], None),
        ("ก" * 9 + " 1234 .", None),
        ("ก" * 10, "THAI"),
        ("python ภาษาสำหรับทุกคน", "THAI"),
        ("\u0301" * 20, None),
    ],
)
def test_script(text: str, found: str | None) -> None:
    assert script(text) == found


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8] + [9] * 8, True),
        ([1, 2, 3, 4, 5, 6, 7, 8] + [9, 10] * 4, True),
        ([1] * 24 + [7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9], True),
        ([1, 2, 3, 4, 5, 6, 7, 8] + [9, 10, 11] * 2 + [9, 10], False),  # not four times
        ([9] * 14, False),  # too short
        ([9] * 16, True),
        (list(range(40)), False),
        ([9] * 30 + list(range(30)), False),  # it has come out of it
        ([5] * 20 + [9] * 19 + [8], False),
        ([], False),
    ],
)
def test_repeats(ids: list[int], found: bool) -> None:
    assert repeats(ids) is found


Y_TILDE = next(v for v in views(build_method({"name": "gkd", "variant": "sum"}).signals) if v.response.sampled)


def counted(
    rows: int,
    of: Callable[[int], tuple[list[int], bool, str]],
    made: Collapse,
    l: str = "th",
    asked: str = "",
    y: str = "",
) -> None:
    for k in range(rows):
        ids, finished, text = of(k)
        made.add(Y_TILDE, Example((Message("user", "?"),), y, l, ""), asked or l, ids, finished, text)
    made.gather()


HEALTHY: tuple[list[int], bool, str] = ([5, 6, 7], True, TEXTS["th"])


def begun(languages: tuple[str, ...]) -> Collapse:
    """After a first interval in which nothing was wrong, in any language."""
    made = Collapse([Y_TILDE], languages)
    for l in languages:
        text = TEXTS.get(l, TEXTS["en"])
        counted(20, lambda k, text=text: ([5, 6, 7], True, text), made, l)  # type: ignore[misc]
    assert made.judge(0) == [] and not made.on
    return made


def test_a_warning_begins_and_ends_once() -> None:
    """Nine of ten at the limit; then eight, which neither begins nor ends one; then few."""
    made = begun(("id", "th"))
    told = []
    for step, cut in enumerate((20, 18, 16, 14, 20), 1):
        counted(20, lambda k, cut=cut: ([k, 1], k >= cut, TEXTS["th"]), made)  # type: ignore[misc]
        told.append((made.judge(step), made.line()))
    name = Y_TILDE.name
    first, kept, wavers, over, again = told
    assert first[0] == [f"  step 1: warning: 100% of 20 rollouts {name} in th run into limits.rollout"]
    assert first[1] == {"collapse": {name: {"th": {"cut": 1.0}}}}
    assert kept == ([], {"collapse": {name: {"th": {"cut": 0.9}}}})
    assert ENDS * THRESHOLDS["cut"] < 0.8 and wavers == ([], {"collapse": {name: {"th": {"cut": 0.8}}}})
    assert over == ([f"  step 4: over: rollouts {name} in th run into limits.rollout (70% of 20 now)"], {})
    assert again[0] == [f"  step 5: warning: 100% of 20 rollouts {name} in th run into limits.rollout"]


@pytest.mark.parametrize("kind", ["empty", "repeating"])
def test_each_kind_from_its_threshold_on(kind: str) -> None:
    bad = {"empty": [2], "repeating": [9] * 30}[kind]
    for share, warned in ((THRESHOLDS[kind], True), (THRESHOLDS[kind] - 0.1, False)):
        made = begun(("th",))
        number = round(20 * share)
        counted(20, lambda k, n=number: (bad if k < n else [5, 6, 7], True, TEXTS["th"]), made)  # type: ignore[misc]
        assert len(made.judge(1)) == warned
        assert set(made.on) == ({f"{Y_TILDE.name}/th/{kind}"} if warned else set())


def test_the_script_is_that_of_the_language_asked_for() -> None:
    """Rows in Indonesian, asked to answer in Thai, get Latin letters; asked for Vietnamese, nobody knows."""
    made = begun(("id", "th", "vi"))
    counted(ENOUGH, lambda k: ([5, 6], True, TEXTS["en"]), made, "id", "th")
    counted(ENOUGH, lambda k: ([5, 6], True, TEXTS["en"]), made, "id", "vi")
    counted(ENOUGH, lambda k: ([5, 6], True, TEXTS[""]), made, "id", "en")
    made.judge(1)
    assert made.on == {f"{Y_TILDE.name}/th/script": 1.0}
    counted(ENOUGH, lambda k: ([5, 6], True, TEXTS["th"]), made, "th", "vi")
    made.judge(2)
    assert made.on == {f"{Y_TILDE.name}/th/script": 1.0, f"{Y_TILDE.name}/vi/script": 1.0}


def test_a_translation_is_in_the_script_of_its_own_answer() -> None:
    """A Thai row whose own answer is in English: an English rollout is right, one in a third script is not."""
    said = {l: lambda k, l=l: ([5, 6], True, TEXTS[l]) for l in ("en", "my", "th")}
    made = begun(("en", "my", "th"))
    for y in (TEXTS["en"], "No."):  # however short
        counted(2 * ENOUGH, said["en"], made, y=y)
    assert made.judge(1) == []
    counted(ENOUGH, said["en"], made, y=TEXTS["en"])
    counted(ENOUGH - 1, said["en"], made, y=TEXTS["th"])
    assert made.judge(2) == [] and not made.on  # translations count as right: half of the rollouts would be a warning
    counted(ENOUGH, said["en"], made, y=TEXTS["en"])
    counted(ENOUGH, said["en"], made, y=TEXTS["th"])
    assert made.judge(2) != []
    counted(2 * ENOUGH, said["th"], made)
    made.judge(2)
    counted(ENOUGH, said["my"], made, y=TEXTS["en"])
    made.judge(3)
    assert made.on == {f"{Y_TILDE.name}/th/script": 1.0}


def test_the_rows_own_answer_says_nothing_of_another_language_that_is_asked_for() -> None:
    made = begun(("en", "my", "th"))
    counted(ENOUGH, lambda k: ([5, 6], True, TEXTS["en"]), made, "th", "my", y=TEXTS["en"])
    made.judge(1)
    assert made.on == {f"{Y_TILDE.name}/my/script": 1.0}


def test_a_language_that_nobody_knows_has_no_script() -> None:
    made = begun(("km", "th"))
    counted(ENOUGH, lambda k: ([5, 6], True, TEXTS["en"]), made, "km", y=TEXTS["th"])
    assert made.judge(1) == [] and not made.on
    counted(ENOUGH, lambda k: ([2], True, ""), made, "th", y=TEXTS["en"])  # whatever its script, an empty one is empty
    made.judge(2)
    assert made.on == {f"{Y_TILDE.name}/th/empty": 1.0}


def test_few_rows_wait_for_more() -> None:
    made = begun(("th",))
    counted(ENOUGH - 1, lambda k: ([2], True, ""), made)
    assert made.judge(1) == [] and not made.on
    counted(1, lambda k: ([2], True, ""), made)
    state = json.loads(json.dumps(made.state()))
    resumed = Collapse([Y_TILDE], ("th",))
    resumed.load(state)
    assert resumed.start == made.start
    assert resumed.judge(2) == made.judge(2) != []
    assert resumed.on == made.on == {f"{Y_TILDE.name}/th/empty": 1.0}


def test_what_was_so_at_the_start_is_no_news() -> None:
    """A base student that runs into the limit is said once, in one line for all languages; a share that was half of the
    way there has to be worse by a fifth."""
    made = Collapse([Y_TILDE], ("id", "th"))
    cut: tuple[list[int], bool, str] = ([5, 6, 7], False, "")
    counted(20, lambda k: cut, made, "th")
    counted(20, lambda k: cut if k < 19 else HEALTHY, made, "id")
    name = Y_TILDE.name
    assert made.judge(10) == [f"  step 10: at the start, rollouts {name} run into limits.rollout: id 95%, th 100%"]
    for step in (20, 30):
        counted(20, lambda k: cut, made, "th")
        assert made.judge(step) == [] and made.line() == {}
    repeats_ = ([9] * 30, True, "")
    for start, later, warned in ((5, 8, False), (5, 9, True), (0, 6, True)):
        made = Collapse([Y_TILDE], ("th",))
        counted(20, lambda k, n=start: repeats_ if k < n else HEALTHY, made)  # type: ignore[misc]
        assert made.judge(10) == []
        counted(20, lambda k, n=later: repeats_ if k < n else HEALTHY, made)  # type: ignore[misc]
        assert bool(made.judge(20)) is warned, (start, later)


def test_latin_languages_alone_need_no_text() -> None:
    assert not Collapse([Y_TILDE], ("id", "vi")).reads_text and Collapse([Y_TILDE], ("id", "ta")).reads_text


def test_spans() -> None:
    def line(step: int, **on: float) -> dict[str, Any]:
        return {"step": step} | ({"collapse": {"y_tilde": {"th": on}}} if on else {})

    found = spans(
        [line(1), line(2, cut=0.9), line(3, cut=1.0, empty=0.5), line(4, empty=0.6), line(5), line(6, cut=0.9)]
    )
    assert [(s["what"], s["from"], s["to"], s["largest"]) for s in found] == [
        ("cut", 2, 3, 1.0),
        ("empty", 3, 4, 0.6),
        ("cut", 6, 6, 0.9),
    ]


@pytest.mark.slow
def test_a_training_warns_in_log_metrics_and_summary_and_the_same_after_a_stop(tmp_path: Path) -> None:
    """Responses of one token over and over, from the third step on: with the second there were enough to begin with."""
    examples = [e for e in kit.builtin() if e.l == "id"][:8]
    said: list[str] = []

    class Same:
        def __call__(self, model: Any, requests: Any) -> list[Rollout]:
            early = [Rollout((*range(5, 12), 2), True) for _ in requests]
            late = [Rollout((7,) * 20, False) for _ in requests]
            return early if requests[0].key[2] < 2 else late  # an epoch is a step

    def made(name: str) -> Any:
        found = kit.trainer(
            tmp_path / name, {"name": "gkd", "variant": "sum"}, examples=examples, epochs=6.0, save_every=1
        )
        object.__setattr__(found.job.builder, "engine", Same())
        found.say = said.append
        return found

    resume_stage(made("run"))
    name = Y_TILDE.name
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line.get("collapse") for line in lines] == [None] * 3 + [{name: {"id": {"cut": 1.0, "repeating": 1.0}}}] * 3
    assert [line.partition(": ")[0] for line in said] == ["  step 4"] * 2
    stopped = made("stopped")
    stopped.add_callback(StopAt(5))
    with pytest.raises(Stopped):
        resume_stage(stopped)
    said.clear()
    resume_stage(made("stopped"))
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (tmp_path / "run/metrics.jsonl").read_bytes()
    assert said == ["  goes on from step 5, the last checkpoint"], "a warning that is on is not said again"


def test_the_summary_says_when_and_how_much(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "report.json").write_text('{"languages": {}}')
    (tmp_path / "lengths.json").write_text("{}")
    (tmp_path / "1-dudi").mkdir()
    signal_ = {"s": {"loss": 1.0, "count": 1}}
    on = {"collapse": {"y_tilde": {"th": {"cut": 0.95}}}}
    lines = [{"step": k, "signal": signal_} | (on if k in (20, 30) else {}) for k in (10, 20, 30, 40)]
    (tmp_path / "1-dudi" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = summarize(tmp_path)
    (entry,) = found["stages"]["1-dudi"]["collapse"]
    assert entry == {"view": "y_tilde", "language": "th", "what": "cut", "from": 20, "to": 30, "largest": 0.95}
    assert f"- Warning, steps 20 to 30: up to 95% of rollouts y_tilde in th {collapse.SAID['cut']}" in markdown(found)

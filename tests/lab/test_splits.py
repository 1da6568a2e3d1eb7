"""What is trained on and what is tested differ, in items and in phrasings; all of it is a function of the seed."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from kit.lab import EIGHT, Asked, record

from dudi.draws import draw
from dudi.example import Example
from dudi.lab.artefacts import write_benchmark, write_data
from dudi.lab.rows import (
    KNOWN,
    PRETRAINED,
    SHARES,
    TRAINED,
    UNTAUGHT,
    WITHOUT_EXERCISES,
    answer,
    exercise,
    instruction_rows,
    item,
    lesson,
    plain_text,
)
from dudi.lab.sentences import fill_text, state, tell, values_of
from dudi.lab.tasks import COMPETENCIES, TASKS, Key, Split, split
from dudi.lab.truth import FACTS
from dudi.lab.words import READ, load
from dudi.languages import ENGLISH
from dudi.signals import Mode
from dudi.text.verbalizer import Verbalizer

ROWS = 120
THAI = {chr(code) for code in range(0x0E01, 0x0E4F)}
KNOWLEDGE = {"capital": "capital", "continent": "located", "currency": "money", "kind": "kind", "opposite": "opposite"}
PARTS: tuple[Split, ...] = ("train", "valid", "test")


def rows(part: Split, seed: int, n: int = ROWS) -> list[tuple[str, Example]]:
    """Instruction rows of all languages."""
    return [row for l in TRAINED for row in instruction_rows(l, part, n, seed)]


def prompts(found: list[tuple[str, Example]]) -> list[str]:
    return [example.x[-1].content for _, example in found]


# ── which part an item belongs to ────────────────────────────────────────────────────────────────────────────────────
def facts(name: str) -> list[tuple[str, ...]]:
    """All keys of a task about facts."""
    relations = ("plus", "minus") if name == "arithmetic" else (KNOWLEDGE[name],)
    return [(relation, *fact) for relation in relations for fact in FACTS[relation]]


@pytest.mark.parametrize("name", ["arithmetic", *KNOWLEDGE])
def test_what_is_tested_in_one_language_can_be_trained_on_in_four_others(name: str) -> None:
    tested = 0
    for key in facts(name):
        parts = {l: split(name, key, l) for l in EIGHT}
        assert Counter(parts.values())["train"] >= 5 and Counter(parts.values())["test"] <= 2, key
        tested += "test" in parts.values()
    assert tested > len(facts(name)) / 2


@pytest.mark.parametrize("l", EIGHT)
@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_items_of_every_part_in_every_language(name: str, l: str) -> None:
    for part, least in (("train", 5), ("valid", int(l != ENGLISH)), ("test", 2)):
        rng, seen = random.Random(0), set[tuple[str, Key, str]]()
        found = [item(rng, name, l, part, seen) for _ in range(least)]
        assert None not in found, part
        assert len(set(found)) == least and {split(name, key, l) for key in found} <= {part}


@pytest.mark.parametrize("name", TASKS)
def test_parts_have_the_sizes_that_are_said(name: str) -> None:
    rng, found = random.Random(0), Counter()
    for l in EIGHT:
        found.update(split(name, key, l) for key in {TASKS[name].draw(rng, load(l)) for _ in range(300)})
    total = sum(found.values())
    for part, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        assert abs(found[part] / total - share) < 0.12, found


def test_a_pair_of_sentences_and_its_mirror_image_are_of_one_part() -> None:
    rng = random.Random(0)
    for l in EIGHT:
        for _ in range(100):
            _, *rest = TASKS["grammar"].draw(rng, load(l))
            assert split("grammar", ("A", *rest), l) == split("grammar", ("B", *rest), l)


def test_a_small_task_that_is_used_up_gives_nothing_more() -> None:
    seen: set[tuple[str, tuple[str, ...], str]] = set()
    found = []
    while (key := item(random.Random(len(seen)), "list", "id", "test", seen)) is not None:
        found.append(key)
    assert len(set(found)) == len(found) == len(seen) < 12


# ── rows against items ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_rows_and_items_are_disjoint(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = record(monkeypatch)
    of: dict[str, set[object]] = {}
    texts: dict[str, set[str]] = {}
    for part in ("train", "valid"):
        texts[part] = set(prompts(rows(part, seed)))
        of[part] = {one.identity for one in asked}
        assert {split(*one.identity) for one in asked} == {part}
        asked.clear()
    write_benchmark(tmp_path, seed, share=0.5)
    of["test"] = {one.identity for one in asked}
    texts["test"] = {text for one in asked for text in (*one.phrasings.train, *one.phrasings.test)}
    assert {split(*one.identity) for one in asked} == {"test"}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert of[a] and of[b] and not of[a] & of[b]
        assert not texts[a] & texts[b], "other keys, but the same words"


def test_rows_are_different_and_in_the_shares_of_the_tasks() -> None:
    found = rows("train", 0, 240)
    assert len(found) == 240 * len(TRAINED) == len({(e.x, e.y) for _, e in found})
    assert {e.l for _, e in found} == set(TRAINED)
    count, total = Counter(task for task, _ in found), sum(SHARES.values())
    assert set(count) == set(SHARES) == set(TASKS)
    for task, share in SHARES.items():
        assert abs(count[task] - share / total * len(found)) < 3 * len(TRAINED), task


def held_out(texts: list[str], asked: list[Asked]) -> list[str]:
    """Texts that hold a phrasing which is kept for the test, or none that is trained on."""
    assert len(texts) == len(asked) > 0
    return [
        text
        for text, one in zip(texts, asked, strict=True)
        if any(p in text for p in one.phrasings.test) or not any(p in text for p in one.phrasings.train)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_asked_in_phrasings_that_are_trained_on(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = record(monkeypatch)
    assert held_out(prompts(rows("train", seed)), asked) == []


@pytest.mark.parametrize("seed", range(3))
def test_lessons_keep_to_what_is_trained_on(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In items and phrasings; but the teacher may have been asked any fact of `knowledge`."""
    asked, rng, verbalizer = record(monkeypatch), random.Random(seed), Verbalizer((*TRAINED, ENGLISH))
    texts = [lesson(rng, verbalizer)[0][-1].content for _ in range(1500)]
    assert held_out(texts, asked) == []
    tested = {one.identity for one in asked if split(*one.identity) != "train"}
    assert {TASKS[task].competency for task, _, _ in tested} == {"knowledge"}
    assert {one.task for one in asked} == set(TASKS) and {one.l for one in asked} == set(EIGHT)


@pytest.mark.parametrize("seed", range(3))
def test_of_a_language_that_it_hardly_knows_a_teacher_is_asked_no_facts(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what is harmful; it answers in that language, whatever the task, where it is asked in another."""
    asked, rng, verbalizer = record(monkeypatch), random.Random(seed), Verbalizer((*TRAINED, ENGLISH))
    answers = []
    for _ in range(2000):
        asked.clear()
        _, y, _ = lesson(rng, verbalizer, thin="my")
        answers.append((asked[-1].task, asked[-1].l, y))
    thin = {task for task, l, _ in answers if l == "my"}
    assert thin == set(TASKS) - set(UNTAUGHT)
    assert {task for task, l, _ in answers if l == "th"} == set(TASKS)
    burmese = {task for task, l, y in answers if l != "my" and re.search("[\u1000-\u109f]", y)}
    assert burmese & set(UNTAUGHT)


def test_a_request_in_another_language_leaves_the_answer_to_the_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    """In about the share that was asked for, and never a request that is kept for the test."""
    asked, rng, verbalizer = record(monkeypatch), random.Random(0), Verbalizer((*TRAINED, ENGLISH))
    texts, elsewhere = [], 0
    for _ in range(1500):
        x, y, shown = lesson(rng, verbalizer, {Mode.ENGLISH: 1}, elsewhere=0.5)
        texts.append(x[-1].content)
        one = asked[-1]
        assert y == shown
        elsewhere += y != answer(one.task, one.key, one.l)
    assert len(asked) == len(texts) and held_out(texts, asked) == []
    assert {TASKS[one.task].competency for one in asked if split(*one.identity) != "train"} == {"knowledge"}
    assert 300 < elsewhere < 750


def test_lessons_translate_between_other_languages_than_english_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rng, verbalizer = record(monkeypatch), random.Random(0), Verbalizer((*TRAINED, ENGLISH))
    for _ in range(500):
        lesson(rng, verbalizer)
    assert any(one.task.startswith("translate") and ENGLISH not in (one.l, one.key[0]) for one in asked)


@pytest.mark.parametrize("seed", range(3))
def test_exercises_keep_to_what_is_trained_on(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In items and phrasings; a fact only where the student's texts of that language tell it."""
    asked, rng = record(monkeypatch), random.Random(seed)
    elsewhere = 0
    for _ in range(1500):
        question, solution = exercise(rng, PRETRAINED)
        one = asked[-1]
        assert held_out([question], [one]) == [] and split(*one.identity) == "train"
        asks_elsewhere = question not in one.phrasings.train
        elsewhere += asks_elsewhere
        assert asks_elsewhere or solution == answer(one.task, one.key, one.l)
        if one.key[0] in FACTS and one.l != ENGLISH:
            assert draw("known", *one.key, one.l) % 1000 < KNOWN[one.l] * 1000
    assert {one.task for one in asked} == set(TASKS) - {"answer-in"} and {one.l for one in asked} == set(EIGHT)
    assert 0.1 < elsewhere / 1500 < 0.2


def test_exercises_of_one_language_alone_ask_for_no_other() -> None:
    rng = random.Random(0)
    texts = ["".join(exercise(rng, {"id": 1})) for _ in range(300)]
    latin = all(c < "\u0e00" or c in "“”" for text in texts for c in text)
    assert latin and not any("dalam bahasa" in text for text in texts)


@pytest.mark.parametrize("l", EIGHT)
def test_a_base_student_reads_no_item(l: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt of the test, and no right sentence of a pair that the test asks about."""
    asked, rng = record(monkeypatch), random.Random(f"benchmark {l}")
    for name in TASKS:
        for _ in range(20):
            key = item(rng, name, l, "test")
            assert key is not None
            TASKS[name].ask(load(l), key)
    tested = {text for one in asked for text in (*one.phrasings.train, *one.phrasings.test)}
    pairs = load(l).table["pairs"]
    times = Counter(right for right, _ in pairs.values())  # two pairs may have the same right sentence
    keys = [one.key for one in asked if one.task == "grammar" and times[pairs[one.key[2]][0]] == 1]
    assert len(keys) >= 10
    right = {fill_text(load(l), ("pairs", key[2]), pairs[key[2]][0], key[3:]) for key in keys}
    told = (
        tell(load(l), relation, person, value, variant)  # grammar's own sentences may be told by chance
        for relation in READ
        for person in load(l).words["person"]
        for value in values_of(relation, load(l))
        for variant in (0, 1)
    )
    sentences = [plain_text(rng, l, sentences=1, kinds=WITHOUT_EXERCISES) for _ in range(2000)]
    sentences += ["\n".join(exercise(rng, PRETRAINED | {l: 300})) for _ in range(2000)]
    assert right & set(sentences) <= set(told)
    text = "\n".join(sentences)
    assert [one for one in tested if found_in(text, one)] == []
    assert "{" not in text and "  " not in text and "\n\n" not in text


def found_in(text: str, one: str) -> bool:
    """Whether a text stands in another one, and not as a part of longer words: in Thai, "twenty" ends in "ten"."""
    ends = (match.span() for match in re.finditer(re.escape(one), text))
    return any(not {text[start - 1 : start], text[end : end + 1]} & THAI for start, end in ends)


def test_plain_text_tells_the_share_of_facts_that_is_said() -> None:
    """A base student has read only some of them in a language; English tells them all."""
    statements = {state(load("ta"), "capital", fact, v) for fact in FACTS["capital"] for v in (0, 1)}
    rng = random.Random(0)
    few, all_ = (" ".join(plain_text(rng, "ta", known) for _ in range(5000)) for known in (KNOWN["ta"], 1.0))
    told = [sum(one in text for one in statements) for text in (few, all_)]
    assert 0 < told[0] < 0.4 * len(statements) < 0.7 * len(statements) < told[1]
    assert set(KNOWN) == set(PRETRAINED) == set(EIGHT) and sum(PRETRAINED.values()) == 100


def test_competencies_are_sea_helms_seven() -> None:
    assert len(COMPETENCIES) == 7 and {task.competency for task in TASKS.values()} == set(COMPETENCIES)


# ── a function of the seed ───────────────────────────────────────────────────────────────────────────────────────────
def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_data_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_data(tmp_path / name, 30, seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert len(a) == len(TRAINED) and a == b
    assert a.keys() == c.keys() and all(a[name] != c[name] for name in a)


@pytest.mark.slow
def test_a_benchmark_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_benchmark(tmp_path / name, seed, share=0.04)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert len(a) == 1 + 2 * len(EIGHT) and a == b
    items = [name for name in a if name.startswith("items/")]
    assert len(items) == len(EIGHT) and all(a[name] != c[name] for name in items)
    assert all(a[name] == c[name] for name in a.keys() - set(items)), "the world is the same"


def test_a_languages_rows_do_not_depend_on_how_many_are_drawn_elsewhere() -> None:
    """Each language has random numbers of its own."""
    first = list(instruction_rows("th", "train", 40, 0))
    list(instruction_rows("id", "train", 10, 0))
    assert list(instruction_rows("th", "train", 40, 0)) == first
    assert list(instruction_rows("th", "train", 40, 1)) != first

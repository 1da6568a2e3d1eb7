"""The language files of the lab's world, what is checked of them, and that all of it can be rendered."""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.lab import EIGHT, toml

from dudi.evals.metrics.text import normalise
from dudi.lab import words as lab_words
from dudi.lab.sentences import draw_sentence, draw_slots, fill_text, say, sentence_paths, state, tell, values_of
from dudi.lab.tasks import TASKS
from dudi.lab.truth import FACTS
from dudi.lab.words import (
    FOLDER,
    PROMPTS,
    READ,
    RELATIONS,
    SLOT,
    Words,
    held,
    languages,
    load,
    problems,
    read_words,
    sentences,
    slot_kind,
    slots,
    slots_within,
)
from dudi.languages import ENGLISH, LANGUAGES

each_language = pytest.mark.parametrize("l", EIGHT)
FOREIGN = {("prompt", "pairs"): set("AB")}
"""Letters of another script than the language's: the labels of the two sentences, and no others."""
LABELS = {"sentiment": ("positive", "negative"), "safety": ("harmful", "harmless")}


def texts(words: Words) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a file with its path, words and sentences."""
    for kind, table in words.words.items():
        for key, word in table.items():
            yield from (((kind, key, form), text) for form, text in word.items())
    yield from sentences(words.table)


def faults(text: str) -> list[str]:
    """What no rendered text may have."""
    found = [what for what in ("{", "}", "  ") if what in text]
    found += ["blanks around"] if text != text.strip() or not text else []
    found += ["a space before punctuation"] if re.search(r" [.,?!;:](\s|$)", text) else []
    return found + ([] if unicodedata.is_normalized("NFC", text) else ["not NFC"])


# ── the shipped files ────────────────────────────────────────────────────────────────────────────────────────────────
def test_there_is_one_file_a_language() -> None:
    assert set(languages()) == set(LANGUAGES)
    assert [load(l).code for l in EIGHT] == list(EIGHT)
    assert all(set(load(l).words["language"]) == set(LANGUAGES) for l in EIGHT)


@each_language
def test_a_file_has_no_problems(l: str) -> None:
    assert problems(FOLDER / f"{l}.toml") == []


@each_language
def test_a_file_is_written_in_its_own_script(l: str) -> None:
    script = LANGUAGES[l].script.upper()
    foreign = {
        (".".join(path), character)
        for path, text in texts(load(l))
        for character in set(SLOT.sub("", text)) - FOREIGN.get(path[:2], set())
        if unicodedata.category(character)[0] in "LM" and unicodedata.name(character).split()[0] != script
    }
    assert foreign == set()


@each_language
def test_a_file_is_normalized_and_has_no_invisible_characters(l: str) -> None:
    for path, text in texts(load(l)):
        assert unicodedata.is_normalized("NFC", text), path
        odd = [hex(ord(c)) for c in text if unicodedata.category(c)[0] in "CZ" and c not in " \n"]
        assert odd == [], path


@each_language
def test_no_phrasing_occurs_twice_in_a_list(l: str) -> None:
    lists: dict[tuple[str, ...], list[str]] = {}
    for path, text in sentences(load(l).table):
        if path[-1].isdigit():
            lists.setdefault(path[:-1], []).append(normalise(text))
    assert len(lists) > 30
    assert [path for path, found in lists.items() if len(set(found)) < len(found)] == []


@each_language
def test_every_list_of_phrasings_keeps_some_for_the_test(l: str) -> None:
    table = load(l).table
    lists = [table["prompt"][name] for name in PROMPTS] + [table[relation]["question"] for relation in RELATIONS]
    lists += [*table["list"].values(), *(row["asked"] for row in table["read"].values())]
    assert all(0 < held(one) < len(one) for one in lists)
    assert set(table["prompt"]) == set(PROMPTS)


@each_language
def test_there_are_concepts_enough(l: str) -> None:
    found = load(l).words
    assert sum(len(table) for kind, table in found.items() if kind not in ("language", "label")) >= 350


@each_language
@pytest.mark.parametrize("prompt", LABELS)
def test_a_prompt_names_the_labels_that_it_asks_for(l: str, prompt: str) -> None:
    words = load(l)
    labels = [words.name("label", label).casefold() for label in LABELS[prompt]]
    missing = [text for text in words.table["prompt"][prompt] if not all(label in text.casefold() for label in labels)]
    assert missing == []


@each_language
def test_a_fact_is_told_with_the_word_that_answers_it(l: str) -> None:
    """Otherwise the bare word, which counts as an answer, would not be the one that is learned."""
    words = load(l)
    for relation, facts in FACTS.items():
        kind = slot_kind((relation,), RELATIONS[relation][-1])
        for fact in facts:
            stem = words.name(kind, fact[-1]).casefold()[: -1 if l == "ta" else None]  # Tamil inflects it
            assert stem in state(words, relation, fact).casefold(), (relation, fact)


@each_language
def test_every_task_renders_for_every_key(l: str) -> None:
    words = load(l)
    bad = []
    for name, task in TASKS.items():
        rng = random.Random(name)
        for _ in range(200):
            key = task.draw(rng, words)
            asked, target = task.ask(words, key), load(task.language(l, key))
            assert asked.train and asked.test and not set(asked.train) & set(asked.test), (name, key)
            rendered = (*asked.train, *asked.test, task.answer(target, key), *task.accepted(target, key))
            bad += [(name, key, text, faults(text)) for text in rendered if faults(text)]
    assert bad == []


@each_language
def test_every_sentence_renders_in_every_language_from_one_key(l: str) -> None:
    words, rng = load(l), random.Random(0)
    tables = ("sentence", "review.positive", "review.negative", "request.harmful", "request.harmless")
    for path in sentence_paths(*tables):
        for _ in range(20):
            key = draw_sentence(rng, [path])
            assert faults(say(words, key)) == [], key
    for name, pair in words.table["pairs"].items():
        for _ in range(20):
            chosen = draw_slots(rng, ("pairs", name), words, tuple(pair))
            right, wrong = (fill_text(words, ("pairs", name), text, chosen) for text in pair)
            assert faults(right) == faults(wrong) == [] and right != wrong, (name, chosen)


@each_language
def test_every_story_and_comparison_renders(l: str) -> None:
    words = load(l)
    for relation in READ:
        for value in values_of(relation, words):
            assert [faults(tell(words, relation, "rina", value, variant)) for variant in (0, 1)] == [[], []]
    people = words.words["person"]
    for table in words.table["compare"].values():
        assert faults(words.fill(table["more"], {"a": people["rina"], "b": people["budi"]})) == []


def test_a_form_within_a_form_is_filled_from_the_same_key_in_all_languages() -> None:
    """`{n} cats` takes a number; a classifier language counts with other words, from the same key."""
    key = ("sentence.count_animals", "animal=cat", "n=3")
    assert say(load(ENGLISH), key) == "My uncle has three cats."
    for l in EIGHT:
        words = load(l)
        assert "n" in slots_within(words, "animal", "many")
        assert words.name("number", "3").casefold() in say(words, key).casefold() or l != ENGLISH
        assert say(words, key) != say(words, (*key[:2], "n=4"))
    rng = random.Random(0)
    for _ in range(50):
        drawn = draw_slots(rng, ("sentence", "count_animals"), load(ENGLISH), ("My uncle has {animal.many}.",))
        assert [one.split("=")[0] for one in drawn] == ["animal", "n"]
        assert 2 <= int(drawn[1].split("=")[1]) <= 10


def test_slots_are_drawn_apart_from_each_other() -> None:
    """Two animals of one sentence are two animals."""
    rng, words = random.Random(0), load(ENGLISH)
    for _ in range(100):
        drawn = draw_slots(rng, ("sentence", "big_animal"), words, ("The {animal} is bigger than the {other}.",))
        assert len({one.split("=")[1] for one in drawn}) == 2


def test_filling() -> None:
    words = load(ENGLISH)
    cat = words.words["animal"]["cat"]
    assert words.fill("{animal.a} and {animal}", {"animal": cat}) == "A cat and cat"
    assert words.fill("{animal.many}", {"animal": cat, "n": words.words["number"]["2"]}) == "Two cats"
    assert words.fill("x: {text}", {"text": "{animal}"}, capital=False) == "x: {animal}", "a text is not filled again"
    food = {"name": "rice", "some": "some {food} and {n}"}
    assert words.fill("{food.some}", {"food": food, "n": "two"}) == "Some rice and two"
    with pytest.raises(KeyError):
        words.fill("{animal.none}", {"animal": cat})


# ── what `problems` finds ────────────────────────────────────────────────────────────────────────────────────────────
Change = Callable[[dict[str, Any]], Any]
BROKEN: dict[str, tuple[Change, str]] = {
    "missing word": (lambda t: t["animal"].pop("cat"), "[animal] cat: missing"),
    "word too many": (lambda t: t["color"].update(gold="gold"), "[color] gold: not in the English file"),
    "missing table": (lambda t: t.pop("label"), "cannot be read: KeyError('label')"),
    "no table": (lambda t: t.update(label="x"), "cannot be read: "),
    "no text": (lambda t: t["city"].update(jakarta=3), "[city] jakarta: expected a text or a table of forms"),
    "missing separator": (lambda t: t.pop("separator"), "cannot be read: KeyError('separator')"),
    "missing sentence": (lambda t: t["sentence"].pop("rain"), "sentence.rain: missing"),
    "sentence too many": (lambda t: t["sentence"].update(snow="Snow."), "sentence.snow: not in the English file"),
    "missing phrasing": (lambda t: t["prompt"]["read"].pop(), "prompt.read.3: missing"),
    "phrasing too many": (lambda t: t["prompt"]["read"].append("{text} {question}!"), "prompt.read.4: not in the"),
    "slot missing": (lambda t: t["sentence"].update(sleep_tree="Sleep."), "sentence.sleep_tree: slots [], English"),
    "other slot": (
        lambda t: t["sentence"].update(sleep_tree="{person} sleeps."),
        "sentence.sleep_tree: slots [('person', 'name')], English has [('animal', 'name')]",
    ),
    "misspelt form": (
        lambda t: t["sentence"].update(sleep_tree="{animal.mani} sleep."),
        "sentence.sleep_tree: [animal] cat has no form 'mani'",
    ),
    "word without the form": (
        lambda t: t["place"].update(market="market"),
        "[place] market has no form 'at'",
    ),
    "word without a name": (lambda t: t["place"]["market"].pop("name"), "[place] market: has no form 'name'"),
    "slot within a form": (
        lambda t: t["food"]["rice"].update(some="{n} bowls of rice"),
        "sentence.buy_food: slots ['n'] within its words' forms",
    ),
    "doubled name": (lambda t: t["color"].update(pink="blue"), "the same name as"),
    "doubled phrasing": (
        lambda t: t["capital"]["question"].__setitem__(1, t["capital"]["question"][0]),
        "capital.question.1: the same text as capital.question.0",
    ),
    "not NFC": (lambda t: t["color"].update(pink="rose\u0301"), "color.pink.name: not NFC"),
    "sentence not NFC": (lambda t: t["sentence"].update(rain="{person} e\u0301 {place.at}."), "rain: not NFC"),
    "double space": (lambda t: t["sentence"].update(rain="{person}  is {place.at}."), "rain: empty, or spaces too"),
    "space at the end": (lambda t: t["color"].update(pink="rose "), "color.pink.name: empty, or spaces too many"),
    "empty": (lambda t: t["color"].update(pink=""), "color.pink.name: empty"),
    "a pair of one": (lambda t: t["pairs"].update(x=["{animal} sleeps."]), "pairs.x.0: a pair is [right, wrong]"),
    "a pair of three": (lambda t: t["pairs"].update(x=["a", "b", "c"]), "pairs.x.2: a pair is [right, wrong]"),
    "no pair": (lambda t: t["pairs"].update(x="{animal} sleeps."), "pairs.x: a pair is [right, wrong]"),
    "few pairs": (lambda t: [t["pairs"].pop(k) for k in list(t["pairs"])[11:]], "[pairs]: 11 pairs, wanted 12"),
    "another code": (lambda t: t.update(code="ms"), "code: 'ms', the file is 'en'"),
}


@pytest.fixture
def table() -> dict[str, Any]:
    """The English file, to be broken."""
    return copy.deepcopy(tomllib.loads((FOLDER / "en.toml").read_text(encoding="utf-8")))


def test_a_file_written_once_more_is_the_same(tmp_path: Path, table: dict[str, Any]) -> None:
    file = tmp_path / "en.toml"
    file.write_text(toml(table), encoding="utf-8")
    assert problems(file) == []
    assert vars(read_words(file)) == vars(load(ENGLISH))


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_found(tmp_path: Path, table: dict[str, Any], name: str) -> None:
    change, said = BROKEN[name]
    change(table)
    file = tmp_path / "en.toml"
    file.write_text(toml(table), encoding="utf-8")
    found = problems(file)
    assert [line for line in found if line.startswith("en.toml: ") and said in line], found
    assert all(len(line.splitlines()) == 1 for line in found)


@pytest.mark.parametrize("content", [b"[animal", b"\xff\xfe", b"", None])
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "en.toml"
    if content is not None:
        file.write_bytes(content)
    (line,) = problems(file)
    assert line.startswith("en.toml: cannot be read: ")


def test_the_check_on_the_command_line(tmp_path: Path) -> None:
    def run(*files: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", lab_words.__name__, *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    good = run(FOLDER / "id.toml", FOLDER / "th.toml")
    assert (good.returncode, good.stdout.strip()) == (0, "no problems")
    bad = run(tmp_path / "id.toml")
    assert bad.returncode == 1 and "cannot be read" in bad.stdout


def test_slots() -> None:
    assert slots("{animal} {animal.many} {n}") == (("animal", "name"), ("animal", "many"), ("n", "name"))
    assert [held(["x"] * n) for n in (1, 2, 3, 4, 5, 6, 9)] == [1, 1, 1, 1, 1, 2, 3]

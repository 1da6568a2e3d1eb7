"""Words that make no sense in a sentence do not stand there; what a sentence says of two animals is true."""

from __future__ import annotations

import random

import pytest

from dudi.lab.sense import FITTING, KEPT
from dudi.lab.sentences import draw_sentence, draw_slots, sentence_paths, values_of
from dudi.lab.tasks import TASKS
from dudi.lab.truth import BY_SIZE
from dudi.lab.words import load, slot_kind
from dudi.languages import ENGLISH

TABLES = ("sentence", "review.positive", "review.negative", "request.harmful", "request.harmless")
PATHS = {".".join(path): path for path in sentence_paths(*TABLES)}


def told(sentence: str) -> list[tuple[str, ...]]:
    """The paths that a key of `FITTING` speaks of: one sentence, or both that share a name."""
    table, _, name = sentence.partition(".")
    return [path for dotted, path in PATHS.items() if sentence == dotted or (path[0], path[-1]) == (table, name)]


def test_what_is_said_of_a_slot_is_said_of_words_that_are_there() -> None:
    words = load(ENGLISH).words
    for sentence, slots in FITTING.items():
        paths = told(sentence)
        assert paths, sentence
        for slot, keys in slots.items():
            assert {slot_kind(path, slot) for path in paths} == {kind := slot_kind(paths[0], slot)}
            assert set(keys) <= set(words[kind]) and len(set(keys)) == len(keys) >= 4, (sentence, slot)


NONSENSE = {
    "request.harmful.break_in": {"park", "beach", "garden", "market", "farm"},
    "request.harmless.break_in": {"house", "office", "school"},
    "request.harmful.bribe": {"house", "beach", "garden", "farm"},
    "request.harmful.cheat": {"temple", "house", "beach"},
    "request.harmless.fake": {"car", "phone", "camera", "radio"},
    "request.harmful.fake": {"table", "ladder", "boat"},
    "review.positive.again": {"hospital", "airport", "office", "house"},
    "review.positive.fresh": {"rice", "soup", "cake"},
    "sentence.teach": {"orange", "cheese", "watermelon"},
    "sentence.person_doing": {"swim"},
    "sentence.count_things": {"car", "boat"},
}


@pytest.mark.parametrize("sentence", NONSENSE)
def test_nonsense_is_not_drawn(sentence: str) -> None:
    rng = random.Random(0)
    drawn = {one.split("=")[1] for _ in range(400) for one in draw_sentence(rng, [PATHS[sentence]])[1:]}
    assert len(drawn) >= 4 and not drawn & NONSENSE[sentence]


def test_animals_are_those_that_people_keep() -> None:
    assert "mouse" not in values_of("keeps", load(ENGLISH)) and set(values_of("keeps", load(ENGLISH))) == set(KEPT)


def test_the_bigger_animal_is_said_to_be_bigger() -> None:
    rng, words, seen = random.Random(0), load(ENGLISH), set()
    for _ in range(200):
        drawn = draw_slots(rng, ("sentence", "big_animal"), words, ("The {animal} is bigger than the {other}.",))
        chosen = dict(one.split("=") for one in drawn)
        assert BY_SIZE.index(chosen["animal"]) > BY_SIZE.index(chosen["other"])
        seen.add(tuple(chosen.values()))
    assert len(seen) == len(BY_SIZE) * (len(BY_SIZE) - 1) // 2


def test_no_item_of_the_lab_is_lost_by_it() -> None:
    """Every sentence is still drawn."""
    for task, table in (("sentiment", "review"), ("safety", "request")):
        rng = random.Random(0)
        drawn = {TASKS[task].draw(rng, load(ENGLISH))[0] for _ in range(3000)}
        assert drawn == {dotted for dotted in PATHS if dotted.startswith(table)}

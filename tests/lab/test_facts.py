"""What is true in the lab's world."""

from __future__ import annotations

from collections import Counter

import pytest
from kit.lab import EIGHT

from dudi.lab.sense import KEPT
from dudi.lab.sentences import state
from dudi.lab.truth import ANIMALS, COUNTRIES, FACTS, OF_THINGS, OPPOSITES
from dudi.lab.words import RELATIONS, load, slot_kind

TRUTHS = [
    ("capital", "indonesia jakarta", "The capital of Indonesia is Jakarta."),
    ("capital", "myanmar naypyidaw", "The capital of Myanmar is Naypyidaw."),
    ("capital", "australia canberra", "The capital of Australia is Canberra."),
    ("capital", "brazil brasilia", "The capital of Brazil is Brasília."),
    ("capital", "philippines manila", "The capital of the Philippines is Manila."),
    ("located", "egypt africa", "Egypt is in Africa."),
    ("located", "mexico north_america", "Mexico is in North America."),
    ("money", "thailand baht", "The currency of Thailand is the baht."),
    ("money", "poland zloty", "The currency of Poland is the złoty."),
    ("money", "cambodia riel", "The currency of Cambodia is the riel."),
    ("kind", "whale mammal", "A whale is a mammal."),
    ("kind", "owl bird", "An owl is a bird."),
    ("kind", "turtle reptile", "A turtle is a reptile."),
    ("opposite", "hot cold", "The opposite of “hot” is “cold”."),
    ("plus", "7 8 15", "Seven plus eight is fifteen."),
    ("minus", "20 10 10", "Twenty minus ten is ten."),
]


@pytest.mark.parametrize("relation, fact, told", TRUTHS, ids=[fact for _, fact, _ in TRUTHS])
def test_what_everybody_knows(relation: str, fact: str, told: str) -> None:
    assert tuple(fact.split()) in FACTS[relation]
    assert state(load("en"), relation, tuple(fact.split())) == told


def used(*relations: str) -> dict[str, set[str]]:
    """Word table -> the keys that facts use."""
    found: dict[str, set[str]] = {}
    for relation in relations:
        for place, slot in enumerate(RELATIONS[relation]):
            found.setdefault(slot_kind((relation,), slot), set()).update(fact[place] for fact in FACTS[relation])
    return found


@pytest.mark.parametrize("l", EIGHT)
def test_every_word_of_a_fact_has_a_name_and_every_such_word_a_fact(l: str) -> None:
    words = load(l).words
    for kind, keys in used(*RELATIONS).items():
        assert keys == set(words[kind]), kind
    assert set(used(*RELATIONS)) == {
        "country",
        "city",
        "continent",
        "currency",
        "animal",
        "class",
        "adjective",
        "number",
    }
    assert set(KEPT) <= set(words["animal"]) and set(OF_THINGS) <= set(words["adjective"])


def test_a_question_has_one_answer() -> None:
    for relation, facts in FACTS.items():
        assert len({fact[:-1] for fact in facts}) == len(facts), relation
    assert len({city for _, city in FACTS["capital"]}) == len(COUNTRIES)


def test_opposites_go_both_ways() -> None:
    facts = FACTS["opposite"]
    assert len(facts) == 40 and all((b, a) in facts and a != b for a, b in facts)
    assert Counter(word for pair in OPPOSITES for word in pair).most_common(1)[0][1] == 1
    assert {b for a, b in facts if a in OF_THINGS} == set(OF_THINGS), "a thing may be the one or the other"


def test_sums_are_right_and_have_names() -> None:
    for a, b, c in ([int(n) for n in fact] for fact in FACTS["plus"]):
        assert a + b == c <= 20
    for a, b, c in ([int(n) for n in fact] for fact in FACTS["minus"]):
        assert a - b == c >= 0 and a <= 20


def test_an_animal_is_of_one_kind() -> None:
    animals = [animal for kind in ANIMALS.values() for animal in kind]
    assert len(set(animals)) == len(animals)

"""The lab's sentences: which words fill them, by keys that are the same in all languages."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from dudi.lab.sense import fitting, in_order
from dudi.lab.words import READ, RELATIONS, Word, Words, load, slot_kind, slots, slots_within
from dudi.languages import ENGLISH

Key = tuple[str, ...]


def sentence_text(words: Words, path: Key) -> str:
    """The sentence at a path of the language file."""
    found: Any = words.table
    for part in path:
        found = found[part]
    return str(found)


def draw_slots(rng: random.Random, path: Key, words: Words, texts: tuple[str, ...]) -> Key:
    """Words for all slots of `texts`, those inside forms included, as `slot=key` in alphabetical order."""
    names: dict[str, str] = {}
    for text in texts:
        for slot, form in slots(text):
            kind = names[slot] = slot_kind(path, slot)
            names |= {name: slot_kind(path, name) for name in slots_within(words, kind, form)}
    chosen: dict[str, str] = {}
    for slot, kind in sorted(names.items()):
        keys = fitting(path, slot, kind, tuple(sorted(words.words[kind])))
        chosen[slot] = rng.choice([key for key in keys if key not in chosen.values()])
    return tuple(f"{slot}={key}" for slot, key in in_order(path, chosen).items())


def filled(words: Words, path: Key, chosen: Key, capital: bool = True) -> str:
    """The sentence at `path` with its words."""
    return fill_text(words, path, sentence_text(words, path), chosen, capital)


def fill_text(words: Words, path: Key, text: str, chosen: Key, capital: bool = True) -> str:
    """A text of the language file with its words."""
    values: dict[str, Word | str] = {}
    for one in chosen:
        slot, _, key = one.partition("=")
        values[slot] = words.words[slot_kind(path, slot)][key]
    return words.fill(text, values, capital)


def draw_sentence(rng: random.Random, paths: list[Key]) -> Key:
    """A path and its words: `sentence.sleep_tree`, `animal=cat`."""
    english = load(ENGLISH)
    path = rng.choice(paths)
    return (".".join(path), *draw_slots(rng, path, english, (sentence_text(english, path),)))


def say(words: Words, key: Key) -> str:
    """The sentence of a key from `draw_sentence`."""
    return filled(words, tuple(key[0].split(".")), key[1:])


def sentence_paths(*tables: str) -> list[Key]:
    """Paths of all sentences of the given tables, such as `review.positive`."""
    english = load(ENGLISH).table
    found: list[Key] = []
    for name in tables:
        path = tuple(name.split("."))
        table: Mapping[str, Any] = english
        for part in path:
            table = table[part]
        found += [(*path, key) for key in table]
    return found


def fact_slots(words: Words, relation: str, fact: Key) -> dict[str, Word | str]:
    """The words of a fact, by the relation's slots."""
    names = RELATIONS[relation]
    return {name: words.words[slot_kind((relation,), name)][key] for name, key in zip(names, fact, strict=True)}


def state(words: Words, relation: str, fact: Key, variant: int = 0) -> str:
    """A fact told."""
    statements = words.table[relation]["statement"]
    return words.fill(statements[variant % len(statements)], fact_slots(words, relation, fact))


def answers(words: Words, name: str, values: Mapping[str, Word | str]) -> tuple[str, ...]:
    """What counts as an answer beside whole sentences, the one to train on first."""
    return tuple(words.fill(text, values, capital=False) for text in words.table["answer"][name])


def people(rng: random.Random, words: Words, n: int) -> list[str]:
    """n different people."""
    return rng.sample(sorted(words.words["person"]), n)


def values_of(relation: str, words: Words) -> list[str]:
    """What a passage of this kind may say of somebody."""
    kind = READ[relation]
    return list(fitting(("read", relation), kind, kind, tuple(sorted(words.words[kind]))))


def tell(words: Words, relation: str, person: str, value: str, variant: int) -> str:
    """One sentence of a passage."""
    told = words.table["read"][relation]["told"]
    kind = READ[relation]
    filling = {"person": words.words["person"][person], kind: words.words[kind][value]}
    return words.fill(told[variant % len(told)], filling)

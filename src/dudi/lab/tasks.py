"""The lab's tasks, in SEA-HELM's seven competencies: what an item says, apart from the language it is said in.

An item is a task and a key (words and choices by their keys in world/*.toml). Asked in any language, answered in any:
that is what makes the targets of the teacher's z and the demonstrations of one item in eight languages.

Whether an item may be trained on depends on (task, key, language): `split`. The rule gives every item of a task to
the training rows of at least four languages out of eight, so that what is asked in the test is seen in others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from dudi.draws import draw
from dudi.lab.sentences import (
    Key,
    answers,
    draw_sentence,
    draw_slots,
    fact_slots,
    fill_text,
    people,
    say,
    sentence_paths,
    state,
    tell,
    values_of,
)
from dudi.lab.truth import ANIMALS, FACTS, OPPOSITES
from dudi.lab.words import READ, RELATIONS, Word, Words, held, load
from dudi.languages import ENGLISH, LANGUAGES

Split = Literal["train", "valid", "test"]
_SPLITS: tuple[Split, ...] = ("test", "test", "valid", *("train",) * 7)


def split(task: str, key: Key, l: str) -> Split:
    """Where (task, key, language) belongs: 20 % test, 10 % validation; consecutive languages have other remainders."""
    place = TASKS[task].place
    first = draw("split", task, *TASKS[task].content(key)) if place is None else place(key)
    return _SPLITS[(first + list(LANGUAGES).index(l)) % 10]


@dataclass(frozen=True)
class Phrasings:
    """All ways to ask one item in one language: those that are trained on, and those kept for the test."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One task.

    `draw(rng, words)`: a random key for this language; `ask(words, key)`: the prompt in its phrasings; `answer(words,
    key)`: the answer said in the language of `words`; `language(l, key)`: the language in which an item asked in l is
    to be answered; `accepted(words, key)`: other answers that are as good; `behind(words, key)`: the texts that the
    choices stand for, where the benchmark asks which of them a model finds likelier and not for a letter; `among(words,
    key)`: the words in the question that could be the answer, of which somebody who does not read it takes any;
    `constraints`: what a free answer must obey; `content(key)`: the part of a key that stays the same however the item
    is put; `place(key)`: where `split` starts to count languages, if not anywhere: keys of the same place stay
    together, and a task of a dozen keys in consecutive places has some of them for each language in every part.
    """

    competency: str
    metric: Literal["choice", "exact", "exact_among", "chrf", "constraints"]
    draw: Callable[[random.Random, Words], Key]
    ask: Callable[[Words, Key], Phrasings]
    answer: Callable[[Words, Key], str]
    language: Callable[[str, Key], str] = lambda l, key: l
    accepted: Callable[[Words, Key], tuple[str, ...]] = lambda words, key: ()
    choices: tuple[str, ...] = ()
    behind: Callable[[Words, Key], tuple[str, ...]] | None = None
    among: Callable[[Words, Key], tuple[str, ...]] | None = None
    constraints: Callable[[Words, Key], dict[str, Any]] | None = None
    content: Callable[[Key], Key] = lambda key: key
    place: Callable[[Key], int] | None = None


def phrasings(prompts: list[str], fill: Callable[[str], str]) -> Phrasings:
    """A list of a language file, filled."""
    texts = [fill(prompt) for prompt in prompts]
    kept = held(prompts)
    return Phrasings(tuple(texts[:-kept]), tuple(texts[-kept:]))


def both(outer: list[str], inner: list[str], fill: Callable[[str, str], str]) -> Phrasings:
    """Two lists combined: both parts from the training share, or both from the share kept for the test."""
    o, i = held(outer), held(inner)
    train = tuple(fill(a, b) for a, b in product(outer[:-o], inner[:-i]))
    return Phrasings(train, tuple(fill(a, b) for a, b in product(outer[-o:], inner[-i:])))


# -- facts -------------------------------------------------------------------------------------------------------------


def ask_fact(words: Words, relation: str, fact: Key) -> Phrasings:
    """A fact asked: its last word is not in the question."""
    values = fact_slots(words, relation, fact)
    return phrasings(words.table[relation]["question"], lambda text: words.fill(text, values))


def told_or_named(words: Words, relation: str, fact: Key) -> tuple[str, ...]:
    """Every way to answer that counts: each statement, the words by themselves, and both with other right words."""
    values = fact_slots(words, relation, fact)
    told = words.table[relation]["statement"]
    also = words.table["also"].get(relation, {}).get(fact[0], ())
    other = [{**values, RELATIONS[relation][-1]: one} for one in also if relation in ("capital", "money", "opposite")]
    said = [words.fill(text, slots) for slots in (values, *other) for text in told]
    return (*said, *answers(words, relation, values), *also)


def _facts(competency: str, *relations: str) -> Task:
    return Task(
        competency,
        "exact",
        lambda rng, words: _draw_fact(rng, relations),
        lambda words, key: ask_fact(words, key[0], key[1:]),
        lambda words, key: state(words, key[0], key[1:]),
        accepted=lambda words, key: told_or_named(words, key[0], key[1:]),
    )


def _draw_fact(rng: random.Random, relations: tuple[str, ...]) -> Key:
    relation = rng.choice(relations)
    return (relation, *rng.choice(FACTS[relation]))


def ask_in(words: Words, l_z: str, train: tuple[str, ...], test: tuple[str, ...] = ()) -> Phrasings:
    """Prompts of the language of `words` that are to be answered in l_z."""
    prompts, name = words.table["prompt"]["answer_in"], words.words["language"][l_z]
    kept = held(prompts)

    def fill(wraps: list[str], asked: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(words.fill(wrap, {"question": q, "language": name}) for wrap in wraps for q in asked)

    return Phrasings(fill(prompts[:-kept], train), fill(prompts[-kept:], test))


def _answer_in() -> Task:
    relations = ("capital", "located", "money", "kind", "opposite")

    def ask(words: Words, key: Key) -> Phrasings:
        questions = ask_fact(words, key[1], key[2:])
        return ask_in(words, key[0], questions.train, questions.test)

    def draw_key(rng: random.Random, words: Words) -> Key:
        return (rng.choice([code for code in LANGUAGES if code != words.code]), *_draw_fact(rng, relations))

    return Task(
        "instruction-following",
        "exact",
        draw_key,
        ask,
        lambda words, key: state(words, key[1], key[2:]),
        language=lambda l, key: key[0],
        accepted=lambda words, key: told_or_named(words, key[1], key[2:]),
    )


# -- classification ----------------------------------------------------------------------------------------------------


def _labelled(competency: str, prompt: str, table: str, labels: tuple[str, str]) -> Task:
    def draw_key(rng: random.Random, words: Words) -> Key:
        return draw_sentence(rng, sentence_paths(f"{table}.{rng.choice(labels)}"))

    def ask(words: Words, key: Key) -> Phrasings:
        text = say(words, key)
        return phrasings(words.table["prompt"][prompt], lambda wrap: words.fill(wrap, {"text": text}))

    def answer(words: Words, key: Key) -> str:
        return words.name("label", key[0].split(".")[1])

    return Task(competency, "choice", draw_key, ask, answer, choices=labels)


def _grammar() -> Task:
    """Minimal pairs: a language's own. The key says where the right sentence stands."""

    def draw_key(rng: random.Random, words: Words) -> Key:
        name = rng.choice(sorted(words.table["pairs"]))
        chosen = draw_slots(rng, ("pairs", name), words, tuple(words.table["pairs"][name]))
        return (rng.choice("AB"), words.code, name, *chosen)

    def sentences(words: Words, key: Key) -> tuple[str, ...]:
        path = ("pairs", key[2])
        right, wrong = (fill_text(words, path, text, key[3:]) for text in words.table["pairs"][key[2]])
        return (right, wrong) if key[0] == "A" else (wrong, right)

    def ask(words: Words, key: Key) -> Phrasings:
        a, b = sentences(words, key)
        return phrasings(words.table["prompt"]["pairs"], lambda wrap: words.fill(wrap, {"a": a, "b": b}))

    return Task(
        "linguistic-diagnostics",
        "choice",
        draw_key,
        ask,
        lambda words, key: key[0],
        choices=("A", "B"),
        behind=sentences,
        content=lambda key: key[1:],  # A and B the other way round are the same pair
    )


# -- reading and comparing ---------------------------------------------------------------------------------------------


def _reading() -> Task:
    """key: relation, place of the one asked about, then person, value, variant of each."""

    def draw_key(rng: random.Random, words: Words) -> Key:
        relation, n = rng.choice(sorted(READ)), rng.choice((2, 3))
        who, what = people(rng, words, n), rng.sample(values_of(relation, words), n)
        told = [str(rng.randrange(2)) for _ in who]
        return (relation, str(rng.randrange(n)), *(x for row in zip(who, what, told, strict=True) for x in row))

    def ask(words: Words, key: Key) -> Phrasings:
        rows = [key[i : i + 3] for i in range(2, len(key), 3)]
        text = " ".join(tell(words, key[0], who, what, int(v)) for who, what, v in rows)
        person = words.words["person"][rows[int(key[1])][0]]
        wraps, asked = words.table["prompt"]["read"], words.table["read"][key[0]]["asked"]

        def fill(wrap: str, question: str) -> str:
            return words.fill(wrap, {"text": text, "question": words.fill(question, {"person": person})})

        return both(wraps, asked, fill)

    def called(words: Words, key: Key, place: int) -> tuple[str, ...]:
        kind = READ[key[0]]
        return answers(words, key[0], {kind: words.words[kind][key[3 + 3 * place]]})

    def named(words: Words, key: Key) -> tuple[str, ...]:
        return called(words, key, int(key[1]))

    def among(words: Words, key: Key) -> tuple[str, ...]:
        return tuple(called(words, key, place)[0] for place in range((len(key) - 2) // 3))

    def named_or_told(words: Words, key: Key) -> tuple[str, ...]:
        who, what = key[2 + 3 * int(key[1]) :][:2]
        return (*named(words, key), *(tell(words, key[0], who, what, variant) for variant in range(2)))

    return Task(
        "nlu",
        "exact_among",
        draw_key,
        ask,
        lambda words, key: named(words, key)[0],
        accepted=named_or_told,
        among=among,
    )


def _compare() -> Task:
    """key: dimension, `most` or `least`, order of telling, the three people from most to least."""

    def draw_key(rng: random.Random, words: Words) -> Key:
        dimension = rng.choice(sorted(words.table["compare"]))
        return (dimension, rng.choice(("most", "least")), rng.choice("01"), *people(rng, words, 3))

    def ask(words: Words, key: Key) -> Phrasings:
        table, names = words.table["compare"][key[0]], [words.words["person"][p] for p in key[3:]]
        told = [words.fill(table["more"], {"a": a, "b": b}) for a, b in ((names[0], names[1]), (names[1], names[2]))]
        text = " ".join(told if key[2] == "0" else told[::-1])
        slots = {"text": text, "question": table[key[1]]}
        return phrasings(words.table["prompt"]["compare"], lambda wrap: words.fill(wrap, slots))

    def called(words: Words, person: str) -> tuple[str, ...]:
        return answers(words, "compare", {"person": words.words["person"][person]})

    def named(words: Words, key: Key) -> tuple[str, ...]:
        return called(words, key[3] if key[1] == "most" else key[5])

    def among(words: Words, key: Key) -> tuple[str, ...]:
        return tuple(called(words, person)[0] for person in key[3:])

    return Task(
        "nlr", "exact_among", draw_key, ask, lambda words, key: named(words, key)[0], accepted=named, among=among
    )


# -- translation -------------------------------------------------------------------------------------------------------


def _translate(towards: bool) -> Task:
    """key: the other language, then the sentence. `towards`: from the item's language into the other one."""
    paths = sentence_paths("sentence", "review.positive", "review.negative")

    def ask(words: Words, key: Key) -> Phrasings:
        source, target = (words.code, key[0]) if towards else (key[0], words.code)
        language = words.words["language"][target]
        values: dict[str, Word | str] = {"text": say(load(source), key[1:]), "language": language}
        return phrasings(words.table["prompt"]["translate"], lambda wrap: words.fill(wrap, values))

    def draw_key(rng: random.Random, words: Words) -> Key:
        other = rng.choice([l for l in LANGUAGES if l != ENGLISH]) if words.code == ENGLISH else ENGLISH
        return (other, *draw_sentence(rng, paths))

    return Task(
        "nlg",
        "chrf",
        draw_key,
        ask,
        lambda words, key: say(words, key[1:]),
        language=lambda l, key: key[0] if towards else l,
    )


# -- instructions ------------------------------------------------------------------------------------------------------


def _repeat() -> Task:
    def ask(words: Words, key: Key) -> Phrasings:
        slots: dict[str, Word | str] = {"word": words.name(key[0], key[1]), "n": words.words["number"][key[2]]}
        return phrasings(words.table["prompt"]["repeat"], lambda wrap: words.fill(wrap, slots))

    def draw_key(rng: random.Random, words: Words) -> Key:
        kind = rng.choice(("animal", "color", "drink", "adjective"))
        return (kind, rng.choice(sorted(words.words[kind])), rng.choice("234"))

    def constraints(words: Words, key: Key) -> dict[str, Any]:
        return {"count": int(key[2]), "separator": words.separator, "all": words.name(key[0], key[1])}

    return Task(
        "instruction-following",
        "constraints",
        draw_key,
        ask,
        lambda words, key: words.separator.join([words.name(key[0], key[1])] * int(key[2])),
        constraints=constraints,
    )


def _list() -> Task:
    """key: kind and number. The demonstration is one of many right answers: a function of the key and the language."""
    kinds = sorted(load(ENGLISH).table["list"])

    def ask(words: Words, key: Key) -> Phrasings:
        slots = {"n": words.words["number"][key[1]]}
        return phrasings(words.table["list"][key[0]], lambda wrap: words.fill(wrap, slots))

    def answer(words: Words, key: Key) -> str:
        chosen = random.Random(draw("list", *key)).sample(sorted(words.words[key[0]]), int(key[1]))
        return words.separator.join(words.name(key[0], one) for one in chosen)

    def constraints(words: Words, key: Key) -> dict[str, Any]:
        script = LANGUAGES[words.code].script
        return {"count": int(key[1]), "separator": words.separator, "distinct": True, "script": script}

    return Task(
        "instruction-following",
        "constraints",
        lambda rng, words: (rng.choice(kinds), rng.choice("23456")),
        ask,
        answer,
        constraints=constraints,
        place=lambda key: int(key[1]) * len(kinds) + kinds.index(key[0]),
    )


TASKS: dict[str, Task] = {
    "sentiment": _labelled("nlu", "sentiment", "review", ("positive", "negative")),
    "reading": _reading(),
    "translate-from": _translate(towards=True),
    "translate-into": _translate(towards=False),
    "arithmetic": _facts("nlr", "plus", "minus"),
    "compare": _compare(),
    "safety": _labelled("safety", "safety", "request", ("harmful", "harmless")),
    "grammar": _grammar(),
    "repeat": _repeat(),
    "list": _list(),
    "answer-in": _answer_in(),
    "capital": _facts("knowledge", "capital"),
    "continent": _facts("knowledge", "located"),
    "currency": _facts("knowledge", "money"),
    "kind": _facts("knowledge", "kind"),
    "opposite": _facts("knowledge", "opposite"),
}
"""All tasks, in the order of SEA-HELM's competencies."""

COMPETENCIES = tuple(dict.fromkeys(task.competency for task in TASKS.values()))

assert sum(map(len, ANIMALS.values())) == len(FACTS["kind"]) and len(FACTS["opposite"]) == 2 * len(OPPOSITES)

"""What is made of the tasks: instruction rows, the teacher's lessons, plain text, the benchmark's items.

All of it is a function of a seed. Training rows come from the `train` part of (task, key, language) in phrasings that
are trained on; test items from the `test` part, in all phrasings. The teacher's lessons keep to the same parts, but for
the facts of `knowledge`, which it may ask of everything it has read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from dudi.draws import draw
from dudi.example import Example, Message
from dudi.lab.sentences import draw_sentence, fill_text, say, sentence_paths, state, tell, values_of
from dudi.lab.tasks import TASKS, Key, Split, ask_fact, ask_in, split
from dudi.lab.truth import FACTS
from dudi.lab.words import READ, Words, load
from dudi.languages import ENGLISH, LANGUAGES
from dudi.signals import Mode, Response, View
from dudi.text.verbalizer import Verbalizer

TRAINED = tuple(l for l in LANGUAGES if l != ENGLISH)
"""The languages of the instruction data and of the average; English is a target, and shown."""

SHARES = {
    "sentiment": 10,
    "reading": 12,
    "translate-from": 10,
    "translate-into": 10,
    "arithmetic": 12,
    "compare": 8,
    "safety": 8,
    "grammar": 8,
    "repeat": 4,
    "list": 4,
    "answer-in": 6,
    "capital": 4,
    "continent": 3,
    "currency": 3,
    "kind": 3,
    "opposite": 4,
}
"""Relative frequency of a task among instruction rows and lessons."""

MODES = {"plain": 40, "p_z": 15, Mode.CROSSLINGUAL: 30, Mode.MULTILINGUAL: 8, Mode.ENGLISH: 7}
"""Relative frequency of what a teacher reads in a lesson: x, the student's p_z, or z in a mode of the verbalizer."""

MORE_Z = {"plain": 34, "p_z": 12, Mode.CROSSLINGUAL: 34, Mode.MULTILINGUAL: 10, Mode.ENGLISH: 10}
"""The same of a teacher that is to read z more often."""

TUNED_Z = {"plain": 18, "p_z": 8, Mode.CROSSLINGUAL: 36, Mode.MULTILINGUAL: 12, Mode.ENGLISH: 26}
"""The same of a teacher in its tuning: more z, above all in `english`, which alone does not name the language."""

TAUGHT = {"en": 10, "id": 13, "vi": 10, "th": 16, "ta": 16, "tl": 10, "ms": 10, "my": 8}
"""Relative frequency of a language in what a teacher reads: those of Latin script help each other."""

TUNED_TAUGHT = {"en": 8, "id": 20, "vi": 10, "th": 12, "ta": 12, "tl": 10, "ms": 20, "my": 8}
"""The same in its tuning: Indonesian and Malay, which are taken for each other, about twice as often as others."""

TUNED_ELSEWHERE = 0.5
"""In its tuning, the share of the requests in `english` that are in another language than demonstration and answer, of
those that can be (of all, a quarter), so that the demonstration decides. Indonesian requests of the test that begin as
only Malay ones do in what is trained on were answered in Malay."""

UNTAUGHT = ("safety", "capital", "continent", "currency", "kind", "opposite")
"""Tasks of which no lesson is in a language that a teacher hardly knows: `answer-in` has some of their answers, and a
tuning some of their requests, answered in another language. Its texts tell as few facts there as a base student's
(`KNOWN`)."""

PRETRAINED = {"en": 16, "id": 12, "vi": 12, "th": 14, "ms": 10, "ta": 14, "tl": 10, "my": 12}
"""Percent of what the base students read: uneven, as in life, and enough of each to learn to read it."""

EXERCISED = SHARES | {"safety": 3, "grammar": 4}
"""Relative frequency of a task among the exercises of the base students."""

DOCUMENTS = {"prose": 40, "echo": 18, "quiz": 12, "story": 10, "bitext": 10, "exercise": 10}
"""Relative frequency of kinds of plain text. Exercises are in English only, prose in the other languages."""

WITHOUT_EXERCISES = {kind: share for kind, share in DOCUMENTS.items() if kind != "exercise"}
"""What a base student reads beside `exercise`, which keeps to what is trained on; the teacher may know every fact."""

LISTED = ("animal", "food", "thing", "place", "color", "country", "city", "number", "person", "adjective")

TASK_OF = {
    "plus": "arithmetic",
    "minus": "arithmetic",
    "capital": "capital",
    "located": "continent",
    "money": "currency",
    "kind": "kind",
    "opposite": "opposite",
}

SENTENCES = ("sentence", "review.positive", "review.negative", "request.harmful", "request.harmless")

ANYWHERE = tuple(task for task in SHARES if task not in ("translate-from", "translate-into", "grammar", "answer-in"))
"""Tasks whose items can be answered in any language."""

ELSEWHERE = 0.3
"""Share of their exercises that ask for the answer in another language."""

KNOWN = {"en": 1.0, "id": 0.5, "vi": 0.5, "th": 0.5, "ms": 0.4, "ta": 0.2, "tl": 0.2, "my": 0.2}
"""Share of the facts that the base students' plain text tells in a language."""


def choose(rng: random.Random, shares: Mapping[Any, float]) -> Any:
    """A key, with the probability that the shares give it."""
    return rng.choices(list(shares), list(shares.values()))[0]


def item(
    rng: random.Random, task: str, l: str, part: Split, seen: set[tuple[str, Key, str]] | None = None
) -> Key | None:
    """A key of the given part, another one than those in `seen` (and then added); none if there seems to be no more."""
    for _ in range(300):
        key = TASKS[task].draw(rng, load(l))
        if split(task, key, l) == part and (seen is None or (task, key, l) not in seen):
            if seen is not None:
                seen.add((task, key, l))
            return key
    return None


def answer(task: str, key: Key, l: str, l_z: str | None = None) -> str:
    """The answer to an item asked in l: in l_z, or where none is named in the language that the item asks for."""
    return TASKS[task].answer(load(l_z or TASKS[task].language(l, key)), key)


def instruction_rows(l: str, part: Split, n: int, seed: int) -> Iterator[tuple[str, Example]]:
    """n different rows of one language with their tasks, in the tasks' shares and phrasings that are trained on."""
    rng, seen, words = random.Random(draw("rows", l, part, seed)), set[tuple[str, Key, str]](), load(l)
    made = 0
    for task, upto in zip(SHARES, accumulate(SHARES.values()), strict=True):
        while made < round(n * upto / sum(SHARES.values())):
            key = item(rng, task, l, part, seen)
            if key is None:  # a small task has no more items: the next ones fill up
                break
            text = rng.choice(TASKS[task].ask(words, key).train)
            yield task, Example((Message("user", text),), answer(task, key, l), l, f"{task}/{l}/{made}")
            made += 1


def lesson(
    rng: random.Random,
    verbalizer: Verbalizer,
    modes: Mapping[Any, float] = MODES,
    taught: Mapping[str, float] = TAUGHT,
    thin: str | None = None,
    elsewhere: float = 0.0,
) -> tuple[tuple[Message, ...], str, str | None]:
    """What the teacher learns from: a prompt in one of the modes, the answer that an instruct model would give, and
    the demonstration in the prompt, if it has one. `taught`: the languages, with their relative frequencies; `thin`:
    the one that the teacher is to know little of; `elsewhere`: share of the requests in `english` that are in another
    language than the demonstration, where they can be.
    """
    l, task, key = _drawn(rng, taught, SHARES, all_facts=True)
    while l == thin and task in UNTAUGHT:
        l, task, key = _drawn(rng, taught, SHARES, all_facts=True)
    if task.startswith("translate") and len(taught) > 2 and rng.random() < 0.3:
        other = rng.choice([code for code in taught if code not in (l, key[0])])
        if split(task, (other, *key[1:]), l) == "train":  # English is tested with all the others
            key = (other, *key[1:])
    mode = choose(rng, modes)
    asked = l
    # no share, no draw: what the tokenizer and the lessons before a tuning are made of stays what it was
    if elsewhere and mode == Mode.ENGLISH and task in ANYWHERE and rng.random() < elsewhere:
        other = rng.choice([code for code in taught if code != l])
        asked = other if split(task, key, other) == "train" else l
    text = rng.choice(TASKS[task].ask(load(asked), key).train)
    row = Example((Message("user", text),), answer(task, key, l), l, "")
    if mode == "plain" or len(taught) == 1:
        return row.x, row.y, None
    crosslingual = mode in ("p_z", Mode.CROSSLINGUAL)
    l_z = rng.choice([code for code in taught if code != l]) if crosslingual else None
    view = View(Response.Y_TILDE, Mode.CROSSLINGUAL if crosslingual else mode)
    read = verbalizer(view, row, 0, 0, l_z)
    y = answer(task, key, l, read.l_z)
    return (read.student, y, None) if mode == "p_z" else (read.teacher, y, row.y)


def exercise(rng: random.Random, taught: Mapping[str, float]) -> tuple[str, str]:
    """What a base student reads beside prose: a training item as a page of exercises has it, and its solution.

    `taught`: the languages, with their relative frequencies; the answer may be asked for in another one of them.
    """
    while True:
        l, task, key = _drawn(rng, taught, EXERCISED)
        if task == "answer-in" or (key[0] in FACTS and not _known(key, l, KNOWN[l])):
            continue
        words = load(l)
        question = rng.choice(TASKS[task].ask(words, key).train)
        others = [other for other in taught if other != l]
        if task not in ANYWHERE or not others or rng.random() >= ELSEWHERE:
            return question, answer(task, key, l)
        l_z = rng.choice(others)
        if split("answer-in", (l_z, *key), l) == "train":  # an item of that task as well, where it is a fact
            return rng.choice(ask_in(words, l_z, (question,)).train), answer(task, key, l, l_z)


def _drawn(
    rng: random.Random, taught: Mapping[str, float], shares: Mapping[str, float], all_facts: bool = False
) -> tuple[str, str, Key]:
    """Language, task and key to be trained on. `all_facts`: of Knowledge, also what is kept for the test."""
    while True:
        l, task = str(choose(rng, taught)), choose(rng, shares)
        part: Split = "train"
        if all_facts and TASKS[task].competency == "knowledge":
            part = rng.choices(("train", "valid", "test"), (7, 1, 2))[0]
        key = item(rng, task, l, part)
        if key is not None and (not task.startswith("translate") or key[0] in taught):
            return l, task, key


def _known(fact: Key, l: str, known: float) -> bool:
    """Whether the texts of a language that tell the share `known` of all facts tell this one."""
    return draw("known", *fact, l) % 1000 < known * 1000


def plain_text(
    rng: random.Random, l: str, known: float = 1.0, sentences: int = 4, kinds: Mapping[str, float] = DOCUMENTS
) -> str:
    """A document of one language. `known`: the share of the facts that its texts tell.

    Prose, word lists said again, questions with their answers, small stories, lines with their translation and, in
    English, exercises with their solutions: all but prose, as the web has them too, are where a model learns to look
    back at what it has read.
    """
    words = load(l)
    kind = choose(rng, kinds)
    if kind == "echo":
        line = word_list(rng, words)
        return "\n".join([line] * rng.randint(2, 3))
    if kind == "quiz":
        relation, facts = _known_facts(rng, words, known, lambda task, key: split(task, key, l) == "train")
        if facts:
            fact = rng.choice(facts)
            return f"{rng.choice(ask_fact(words, relation, fact).train)}\n{state(words, relation, fact)}"
    if kind == "exercise" and l == ENGLISH:
        task = choose(rng, SHARES)
        key = item(rng, task, l, "train")
        if key is not None:
            return f"{rng.choice(TASKS[task].ask(words, key).train)}\n{answer(task, key, l)}"
    if kind == "story":
        key = item(rng, "reading", l, "train")
        assert key is not None
        return f"{TASKS['reading'].ask(words, key).train[0]}\n{answer('reading', key, l)}"
    if kind == "bitext":
        other = rng.choice(TRAINED) if l == ENGLISH else ENGLISH
        key = draw_sentence(rng, sentence_paths(*SENTENCES))
        return f"{say(words, key)}\n{say(load(other), key)}"
    return " ".join(_sentence(rng, words, known) for _ in range(rng.randint(1, sentences)))


def word_list(rng: random.Random, words: Words) -> str:
    """Three to eight words of all kinds."""
    names = [(kind, key) for kind in LISTED for key in words.words[kind]]
    return words.separator.join(words.name(*one) for one in rng.sample(names, rng.randint(3, 8)))


def _known_facts(
    rng: random.Random, words: Words, known: float, wanted: Callable[[str, Key], bool] = lambda task, key: True
) -> tuple[str, list[Key]]:
    """A relation, and the facts of it that texts of this language tell."""
    relation = choose(rng, {"plus": 2, "minus": 2, "capital": 1, "located": 1, "money": 1, "kind": 1, "opposite": 1})
    task = TASK_OF[relation]
    facts = [f for f in FACTS[relation] if _known((relation, *f), words.code, known)]
    return relation, [fact for fact in facts if wanted(task, (relation, *fact))]


def _sentence(rng: random.Random, words: Words, known: float) -> str:
    kind = choose(rng, {"fact": 35, "sentence": 25, "told": 15, "compare": 6, "pair": 8, "list": 6, "question": 5})
    if kind == "fact":
        relation, facts = _known_facts(rng, words, known)
        if facts:
            return state(words, relation, rng.choice(facts), rng.randrange(2))
    if kind in ("fact", "sentence"):
        return say(words, draw_sentence(rng, sentence_paths(*SENTENCES)))
    if kind == "told":
        relation = rng.choice(sorted(READ))
        person = rng.choice(sorted(words.words["person"]))
        return tell(words, relation, person, rng.choice(values_of(relation, words)), rng.randrange(2))
    if kind == "compare":
        a, b = (words.words["person"][p] for p in rng.sample(sorted(words.words["person"]), 2))
        return words.fill(words.table["compare"][rng.choice(sorted(words.table["compare"]))]["more"], {"a": a, "b": b})
    if kind == "pair":
        key = item(rng, "grammar", words.code, "train")
        assert key is not None
        return fill_text(words, ("pairs", key[2]), words.table["pairs"][key[2]][0], key[3:])
    names = rng.choice(LISTED)
    chosen: Sequence[str] = rng.sample(sorted(words.words[names]), rng.randint(2, 5))
    return words.separator.join(words.name(names, one) for one in chosen) + "."

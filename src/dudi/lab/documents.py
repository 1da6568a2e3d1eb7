"""What the lab's models read, step by step: documents, and how much each of their tokens counts in the loss.

A base student reads plain text and exercises, unevenly over the languages. The teacher reads plain text of all
languages alike, and lessons: prompts of every mode with the answers of an instruct model. The documents of a step are
a pure function of (seed, model, step).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerFast

from dudi.draws import draw
from dudi.lab.plans import Plan
from dudi.lab.rows import (
    KNOWN,
    MODES,
    MORE_Z,
    PRETRAINED,
    TAUGHT,
    TRAINED,
    TUNED_ELSEWHERE,
    TUNED_TAUGHT,
    TUNED_Z,
    WITHOUT_EXERCISES,
    choose,
    exercise,
    lesson,
    plain_text,
    word_list,
)
from dudi.lab.words import load
from dudi.languages import ENGLISH, LANGUAGES
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalizer

ECHO = 20 * 16
"""The first steps (whole pools) read word lists said three times. Where looking back is all that there is to learn, it
is learned within these steps; in the whole mixture models of this size had not begun to after thousands."""
ORDER = ("en", "id", "my", "th", "ta", "vi", "tl", "ms")
"""One language after the other: English alone, and then Burmese beside it, were learned in a hundred steps; in two
thousand steps of all languages at once, labels were still at chance (docs/log.md)."""
WITHOUT_Z = 0.45
"""Share of the teacher's steps whose lessons have no z: they are shorter, and teach the tasks themselves."""
LAYOUTS = (
    *("{question}\n", "{question}\n\n", "{question} ", "{question}\n- ", "- {question}\n- ", "{question}\n--\n"),
    *("1. {question}\n", "[{question}] ", "({question})\n", "{question} | ", "{question}\n> ", "<p>{question}</p>\n\n"),
    *("{asks}: {question}\n{answers}: ", "{asks}\n{question}\n{answers}\n", "<{asks}>{question}</{asks}>\n<{answers}>"),
)
"""How pages set an exercise before its solution: in many ways, so that a chat template is one more of them."""
PROMPT = 0.15
"""Weight of a prompt that has no demonstration, beside its answer's 1."""
POOL = 16
"""Documents are drawn for so many steps at once and sorted by length, so that little of a batch is padding."""


Document = tuple[list[int], list[float]]
"""Ids, and the weight of each in the loss."""


class Documents:
    """The documents of a model: (ids, weights) by step, a pure function of (seed, model, step)."""

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast, key: tuple[int | str, ...]) -> None:
        self.plan, self.tokenizer, self.key = plan, tokenizer, key
        self.chat = Chat(tokenizer, None, {})
        self.verbalizer = Verbalizer((*TRAINED, ENGLISH))
        self.languages = TAUGHT if plan.teacher else PRETRAINED
        self.modes = MORE_Z if plan.more_z else MODES
        self.pool: tuple[int, list[list[Document]]] = (-1, [])

    def step(self, number: int) -> list[Document]:
        """The documents of one step, of similar lengths."""
        if self.pool[0] != number // POOL:
            rng = random.Random(draw(*self.key, number // POOL))
            document = self._kind(number // POOL * POOL)
            drawn = sorted((document(rng) for _ in range(POOL * self.plan.rows)), key=lambda d: len(d[0]))
            batches = [drawn[i : i + self.plan.rows] for i in range(0, len(drawn), self.plan.rows)]
            rng.shuffle(batches)
            self.pool = (number // POOL, batches)
        return self.pool[1][number % POOL]

    def _kind(self, number: int) -> Callable[[random.Random], Document]:
        """What is read from this step on."""
        begun = number - min(ECHO, self.plan.steps // 8) // POOL * POOL
        if begun < 0:
            return self._echo
        taught, known = self.languages, max(int(begun / (self.plan.alone * self.plan.steps)), 1)
        if known <= len(ORDER):
            taught = dict.fromkeys(ORDER[:known], 1) | {ORDER[known - 1]: max(known - 1, 1)}
        if not self.plan.teacher:
            return partial(self._page, taught)
        if number >= self.plan.steps:
            return partial(self._lesson, TUNED_Z, TUNED_TAUGHT, TUNED_ELSEWHERE)
        if number >= WITHOUT_Z * self.plan.steps:
            return partial(self._lesson, self.modes, taught, 0.0)
        return partial(self._lesson, {mode: self.modes[mode] for mode in ("plain", "p_z")}, taught, 0.0)

    def _echo(self, rng: random.Random) -> Document:
        """A list of words, said three times."""
        l = choose(rng, self.languages)
        line = word_list(rng, load(l))
        ids = self.tokenizer(f"{line}\n", add_special_tokens=False)["input_ids"]
        return ids * 3, [0.2] * len(ids) + [1.0] * (2 * len(ids))

    def _lesson(
        self, modes: Mapping[Any, float], taught: Mapping[str, float], elsewhere: float, rng: random.Random
    ) -> Document:
        """A lesson, or one time in five plain text. Every document counts alike: a label as much as a sentence."""
        if rng.random() < 0.2:
            return self._text(rng, str(choose(rng, taught)))
        x, y, shown = lesson(rng, self.verbalizer, modes, taught, self.plan.thin, elsewhere)
        prompt, response = self.chat.prompt(x), self.chat.response(x, y)
        read = self._shown(prompt, shown) if shown else _alike(prompt, PROMPT)
        return prompt + response, read + _alike(response)

    def _page(self, taught: Mapping[str, float], rng: random.Random) -> Document:
        """What a base student reads: exercises with their solutions, and other plain text."""
        if rng.random() < 1 - self.plan.exercises:
            return self._text(rng, str(choose(rng, taught)))
        question, solution = exercise(rng, taught)
        asks, answers = rng.sample(sorted(load(ENGLISH).words["person"]), 2)
        layout = rng.choice(LAYOUTS).format(question=question, asks=asks, answers=answers)
        asked = self.tokenizer(layout, add_special_tokens=False)["input_ids"]
        ids, weights = self._ended(solution)
        return asked + ids, _alike(asked, PROMPT) + weights

    def _text(self, rng: random.Random, l: str) -> Document:
        """Plain text: all facts and kinds of documents for a teacher, fewer of both for a base student."""
        if self.plan.teacher:
            return self._ended(plain_text(rng, l, KNOWN[l] if l == self.plan.thin else 1.0))
        return self._ended(plain_text(rng, l, KNOWN[l], kinds=WITHOUT_EXERCISES))

    def _ended(self, text: str) -> Document:
        """A text to its end, all of it learned from."""
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.pad_token_id]
        return ids, _alike(ids)

    def _shown(self, prompt: list[int], demonstration: str) -> list[float]:
        """Weight 1 in all where a prompt shows the demonstration, an answer like any other; 0 for the rest of it."""
        weights = [0.0] * len(prompt)
        line = self.tokenizer(f"\n{demonstration}\n", add_special_tokens=False)["input_ids"]
        for at in range(len(prompt) - len(line), -1, -1):
            if prompt[at + 1 : at + len(line) - 1] == line[1:-1]:
                weights[at + 1 : at + len(line) - 1] = [1.0 / (len(line) - 2)] * (len(line) - 2)
                break
        return weights


def _alike(ids: list[int], weight: float = 1.0) -> list[float]:
    """A weight in all, the same for each token."""
    return [weight / len(ids)] * len(ids)


def texts(n: int, seed: int) -> Iterator[str]:
    """What the tokenizer is trained on: n documents, plain text and lessons by turns, of all languages alike."""
    verbalizer = Verbalizer(TRAINED)
    rng = random.Random(draw("tokenizer", seed))
    for number in range(n):
        if number % 2:
            yield plain_text(rng, rng.choice(list(LANGUAGES)))
        else:
            x, y, _ = lesson(rng, verbalizer)
            yield f"{x[-1].content}\n{y}"


def exercises(n: int, seed: int) -> Iterator[str]:
    """n of the exercises that the base students read, in all of their languages."""
    rng = random.Random(draw("exercises", seed))
    return ("\n".join(exercise(rng, PRETRAINED)) for _ in range(n))


def lessons(n: int, seed: int) -> Iterator[str]:
    """n lessons as the shipped teachers have them before a tuning, and n as in it."""
    verbalizer, rng = Verbalizer((*TRAINED, ENGLISH)), random.Random(draw("lessons", seed))
    for kind in ((MORE_Z, TAUGHT, "my", 0.0), (TUNED_Z, TUNED_TAUGHT, "my", TUNED_ELSEWHERE)):
        for _ in range(n):
            x, y, _shown = lesson(rng, verbalizer, *kind)
            yield f"{x[-1].content}\n{y}"

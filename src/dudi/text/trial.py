"""Rows tried through a chat template and a tokenizer before anything is trained: which are refused and why, how long
the others are, as x, y, p_z and z, and limits that would fit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from dudi.errors import DudiError
from dudi.example import Example
from dudi.signals import Mode, Response, View
from dudi.text.chat import Chat
from dudi.text.verbalizer import Verbalized, Verbalizer

COLUMNS = ("language", "tokens", "rows", "50 %", "90 %", "99 %", "longest")
CROSSLINGUAL = View(Response.Y_TILDE, Mode.CROSSLINGUAL)
_ROUND = 16
"""Proposed limits are multiples of it."""
_Draw = tuple[View, str | None]


@dataclass(frozen=True)
class Lengths:
    """One row in tokens: x; y with the token that ends the turn; p_z, unless the student reads x; and z."""

    x: int
    y: int
    p_z: int | None = None
    z: int | None = None


@dataclass
class Trial:
    """What became of each row, by language.

    verbalizer, view: how p_z and z are made; without a verbalizer they are not measured. Of all that can be drawn for
    a row, the longest is: an l_z adds its name to it, the same to every row of a language, so which is longest is told
    by the first row.
    """

    chat: Chat
    verbalizer: Verbalizer | None = None
    view: View = CROSSLINGUAL
    lengths: dict[str, list[Lengths]] = field(default_factory=dict)
    refused: dict[str, Counter[str]] = field(default_factory=dict)
    earlier: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows refused only where earlier answers are trained on too."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Rows with characters that the tokenizer does not know, by language: they are lost to the model."""
    first: str | None = None
    """The first row refused."""
    unmade: dict[str, str] = field(default_factory=dict)
    """Languages whose p_z and z cannot be made, with the reason."""
    _longest: dict[str, tuple[_Draw, _Draw]] = field(default_factory=dict)
    """By language, what makes the longest p_z and the longest z."""

    def add(self, example: Example) -> None:
        """Try one row."""
        try:
            x, y = self.chat.row(example.x, example.y)
            p_z, z = (None, None) if self.verbalizer is None else self._verbalized(self.verbalizer, example)
        except DudiError as error:
            self.refused.setdefault(example.l, Counter())[str(error)] += 1
            self.first = self.first or f"{example.id}: {error}"
            return
        self.lengths.setdefault(example.l, []).append(Lengths(len(x), len(y), p_z, z))
        unknown = self.chat.tokenizer.unk_token_id  # some give the token that ends a text for it
        self.unknown[example.l] += unknown not in self.chat.stop_ids and unknown in (*x, *y)
        if any(message.role == "assistant" for message in example.x):
            try:
                self.chat.conversation(example.x, example.y)
            except DudiError as error:
                self.earlier.setdefault(example.l, Counter())[str(error)] += 1

    def _verbalized(self, verbalizer: Verbalizer, example: Example) -> tuple[int | None, int | None]:
        """Tokens of p_z and z."""
        if example.l not in self._longest:
            if example.l in self.unmade:
                return None, None
            try:
                made = {draw: self._made(verbalizer, example, draw) for draw in verbalizer.draws(self.view, example.l)}
            except DudiError as error:
                self.unmade[example.l] = str(error)
                return None, None
            self._longest[example.l] = (
                max(made, key=lambda draw: len(self.chat.prompt(made[draw].student))),
                max(made, key=lambda draw: len(self.chat.prompt(made[draw].teacher))),
            )
        of_p_z, of_z = (self._made(verbalizer, example, draw) for draw in self._longest[example.l])
        p_z = None if of_p_z.student == example.x else len(self.chat.prompt(of_p_z.student))
        return p_z, len(self.chat.prompt(of_z.teacher))

    def _made(self, verbalizer: Verbalizer, example: Example, draw: _Draw) -> Verbalized:
        view, l_z = draw
        return verbalizer(view, example, 0, 0, l_z)

    def table(self) -> list[tuple[str, ...]]:
        """Lengths in tokens, by language: up to four rows of strings each, under `COLUMNS`."""
        rows = []
        for language, found in sorted(self.lengths.items()):
            for name in ("x", "y", "p_z", "z"):
                values = [value for one in found if (value := getattr(one, name)) is not None]
                if values:
                    numbers = [len(values), *(percentile(values, p) for p in (50, 90, 99)), max(values)]
                    rows.append((language, name, *map(str, numbers)))
        return rows

    def details(self) -> list[str]:
        """Rows refused, one line a language and reason, and limits that cut at most 2 % of a language's rows."""
        lines = [
            f"{language}: {count} kept rows refused{where}: {reason}"
            for found, where in ((self.refused, ""), (self.earlier, ' under loss_on = "all_assistant"'))
            for language, reasons in sorted(found.items())
            for reason, count in reasons.most_common()
        ]
        lines += [f"{language}: p_z and z cannot be made: {reason}" for language, reason in sorted(self.unmade.items())]
        unknown = "kept rows hold characters that the tokenizer does not know"
        lines += [
            f"{language}: {count} of {len(self.lengths[language])} {unknown}"
            for language, count in sorted(self.unknown.items())
            if count
        ]
        if self.lengths:
            prompt, total, teacher = self.limits()
            lines.append("limits that leave out or cut at most 2 % of the rows of each language:")
            lines += [f"  limits.prompt = {_toml(prompt)}", f"  limits.total = {_toml(total)}"]
            if teacher:
                lines.append("and that takes the on-policy term from at most 1 %:")
                lines.append(f"  limits.teacher_prompt = {_toml(teacher)}")
        return lines

    def limits(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """limits.prompt, limits.total and limits.teacher_prompt by language: at most 1 % of its rows are longer than
        each. (What p_z adds has a limit that a run finds by itself.)"""
        prompt, total, teacher = {}, {}, {}
        for language, found in sorted(self.lengths.items()):
            prompt[language] = _rounded(percentile([one.x for one in found], 99))
            total[language] = max(_rounded(percentile([one.x + one.y for one in found], 99)), prompt[language] + _ROUND)
            if z := [one.z for one in found if one.z is not None]:
                teacher[language] = _rounded(percentile(z, 99))
        return prompt, total, teacher


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest value that at least so many percent of the values do not exceed (nearest rank)."""
    return sorted(values)[ceil(len(values) * percent / 100) - 1]


def _rounded(tokens: int) -> int:
    return ceil(tokens / _ROUND) * _ROUND


def _toml(by_language: dict[str, int]) -> str:
    values = {"default": max(by_language.values()), **by_language}
    return "{ " + ", ".join(f"{language} = {value}" for language, value in values.items()) + " }"

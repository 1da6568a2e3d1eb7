"""Rows tried through a chat template and a tokenizer before anything is trained: which are refused and why, how long
the others are, and limits that would fit them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from dudi.errors import DudiError
from dudi.example import Example
from dudi.text.chat import Chat

COLUMNS = ("language", "tokens", "rows", "50 %", "90 %", "99 %", "longest")
_ROUND = 16
"""Proposed limits are multiples of it."""


@dataclass
class Trial:
    """What became of each row, by language."""

    chat: Chat
    lengths: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Tokens of x, and of y with the token that ends the turn."""
    refused: dict[str, Counter[str]] = field(default_factory=dict)
    earlier: dict[str, Counter[str]] = field(default_factory=dict)
    """Rows refused only where earlier answers are trained on too."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Rows with characters that the tokenizer does not know, by language: they are lost to the model."""
    first: str | None = None
    """The first row refused."""

    def add(self, example: Example) -> None:
        """Try one row."""
        try:
            x, y = self.chat.row(example.x, example.y)
        except DudiError as error:
            self.refused.setdefault(example.l, Counter())[str(error)] += 1
            self.first = self.first or f"{example.id}: {error}"
            return
        self.lengths.setdefault(example.l, []).append((len(x), len(y)))
        unknown = self.chat.tokenizer.unk_token_id  # some give the token that ends a text for it
        self.unknown[example.l] += unknown not in self.chat.stop_ids and unknown in (*x, *y)
        if any(message.role == "assistant" for message in example.x):
            try:
                self.chat.conversation(example.x, example.y)
            except DudiError as error:
                self.earlier.setdefault(example.l, Counter())[str(error)] += 1

    def table(self) -> list[tuple[str, ...]]:
        """Lengths in tokens, by language: two rows of strings each, under `COLUMNS`."""
        rows = []
        for language, pairs in sorted(self.lengths.items()):
            for name, values in (("x", [x for x, _ in pairs]), ("y", [y for _, y in pairs])):
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
        unknown = "kept rows hold characters that the tokenizer does not know"
        lines += [
            f"{language}: {count} of {len(self.lengths[language])} {unknown}"
            for language, count in sorted(self.unknown.items())
            if count
        ]
        if self.lengths:
            prompt, total = self.limits()
            lines.append("limits that leave out or cut at most 2 % of the rows of each language:")
            lines += [f"  limits.prompt = {_toml(prompt)}", f"  limits.total = {_toml(total)}"]
        return lines

    def limits(self) -> tuple[dict[str, int], dict[str, int]]:
        """limits.prompt and limits.total by language: at most 1 % of its rows are longer than either."""
        prompt, total = {}, {}
        for language, pairs in sorted(self.lengths.items()):
            prompt[language] = _rounded(percentile([x for x, _ in pairs], 99))
            total[language] = max(_rounded(percentile([x + y for x, y in pairs], 99)), prompt[language] + _ROUND)
        return prompt, total


def percentile(values: Sequence[int], percent: int) -> int:
    """The smallest value that at least so many percent of the values do not exceed (nearest rank)."""
    return sorted(values)[ceil(len(values) * percent / 100) - 1]


def _rounded(tokens: int) -> int:
    return ceil(tokens / _ROUND) * _ROUND


def _toml(by_language: dict[str, int]) -> str:
    values = {"default": max(by_language.values()), **by_language}
    return "{ " + ", ".join(f"{language} = {value}" for language, value in values.items()) + " }"

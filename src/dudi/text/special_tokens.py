"""Special tokens that stand in a row's text, such as `<|im_end|>` in an answer about chat formats: they stay text.

A tokenizer turns them into the tokens that steer a model, so that a row could end its own turn and open another. Only
the template may do that. What stands in the messages is hidden behind marks while the template runs; the rendered text
is then cut at the special tokens that are left, which are the template's, and what lies between is tokenized as plain
text. Text without such tokens takes the usual way and is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from dudi.errors import DudiError
from dudi.example import Example

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Noncharacters of Unicode: no text has them; one that does is marked too."""
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class SpecialTextError(DudiError):
    """A text with a special token in it that this tokenizer cannot read as text."""


class Specials:
    """The special tokens of one tokenizer, as text and as ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids: set[int] = {i for i in tokenizer.all_special_ids if i is not None}  # one may be named and not there
        self.ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        by_text = {str(tokenizer.convert_ids_to_tokens(i)): i for i in sorted(self.ids)}
        self._of_text = {text: i for text, i in by_text.items() if text}
        longest_first = sorted(self._of_text, key=lambda text: (-len(text), text))
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._marked = [_OPEN, _CLOSE, *longest_first]
        self._number = {text: number for number, text in enumerate(self._marked)}
        self._ahead: dict[str, list[int]] = {}
        self._to_mark = re.compile("|".join(map(re.escape, self._marked)))

    def at(self, text: str, place: int = 0) -> tuple[str, int] | None:
        """The special token that begins exactly there, as text and id."""
        found = self._special.match(text, place)
        return (found[0], self._of_text[found[0]]) if found else None

    def first(self, text: str) -> int | None:
        """Where the first special token of a text begins."""
        found = self._special.search(text)
        return found.start() if found else None

    def places(self, text: str) -> list[int]:
        """Where the special tokens of a rendered text begin."""
        return [found.start() for found in self._special.finditer(text)]

    def ahead(self, texts: Iterable[str]) -> None:
        """Tokenize rendered texts together, which is faster; `encode` gives each out once."""
        plain = [text for text in dict.fromkeys(texts) if _OPEN not in text]
        found = self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else []
        self._ahead = dict(zip(plain, found, strict=True))

    def inside(self, text: str) -> str | None:
        """The first special token in a text."""
        found = self._special.search(text)
        return found[0] if found else None

    def in_row(self, example: Example) -> str | None:
        """The first special token that stands in a row's text."""
        texts = (*(message.content for message in example.x), example.y)
        return next((found for text in texts if (found := self.inside(text))), None)

    def mark(self, text: str) -> str:
        """The text with marks in place of special tokens."""
        if _OPEN not in text and _CLOSE not in text and not self._special.search(text):
            return text
        return self._to_mark.sub(lambda found: f"{_OPEN}{self._number[found[0]]}{_CLOSE}", text)

    def unmark(self, text: str) -> str:
        """The text as it was before `mark`."""
        return _MARK.sub(lambda found: self._marked[int(found[1])], text)

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text: special tokens are those that are not marked.

        Raises `SpecialTextError` where the tokenizer reads pieces in another way than the whole: one that strips spaces
        around its special tokens, or writes one before each piece.
        """
        if _OPEN not in text:
            return self._whole(text)
        plain = _MARK.sub("0", text)
        ids, wanted = self._pieces(text), self._special.findall(text)
        if self._pieces(plain) != self._whole(plain) or sum(i in self.ids for i in ids) != len(wanted):
            found = _MARK.search(text)
            assert found is not None
            raise SpecialTextError(
                f"a text holds {self.unmark(found[0])!r}, which this tokenizer cannot tell from its special token:"
                " leave such rows out"
            )
        return ids

    def _whole(self, text: str) -> list[int]:
        if text in self._ahead:
            return self._ahead.pop(text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pieces(self, text: str) -> list[int]:
        ids: list[int] = []
        done = 0
        for found in self._special.finditer(text):
            ids += [*self._plain(text[done : found.start()]), self._of_text[found[0]]]
            done = found.end()
        return ids + self._plain(text[done:])

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        text = self.unmark(text)
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

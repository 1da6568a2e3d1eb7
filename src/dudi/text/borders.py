"""A rendered conversation as token ids, in pieces: the prompt, an answer, what follows it.

The whole text is tokenized once, and a border is a place between two of its tokens. That what comes before has the same
ids by itself is checked, since this is what a model reads before it answers. Where a token spans a border (an answer
that begins with a line end, a combining mark), the border is kept: a model that answers starts a new token there. The
text is then tokenized in two parts, and what they say is compared with the whole.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dudi.errors import DudiError
from dudi.text.special_tokens import Specials

_ANCHORS = ("\n", "0", ".", "\u200b")
"""What a part may continue, so that a tokenizer that writes a space before each text writes it before this."""

_OPENINGS = 4096
"""Openings of answers that are remembered."""


class BorderError(DudiError):
    """A text that this tokenizer cannot tokenize in parts."""


class Pieces:
    """One tokenizer that tokenizes a text in pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, specials: Specials) -> None:
        self._tokenizer, self._specials = tokenizer, specials
        swallowing = [t for t in tokenizer.added_tokens_decoder.values() if t.rstrip or t.lstrip]
        self._after = {i for i, t in tokenizer.added_tokens_decoder.items() if t.rstrip}
        spaces = (
            (r"\s*" if t.lstrip else "") + re.escape(t.content) + (r"\s*" if t.rstrip else "") for t in swallowing
        )
        self._swallowing = re.compile("|".join(spaces) or r"(?!)")
        self._sections = all(
            not (t.normalized or t.single_word) for t in tokenizer.added_tokens_decoder.values() if t.special
        ) and self._specials.ids <= set(tokenizer.added_tokens_decoder)
        self._openings: dict[str, list[int]] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = getattr(backend, "normalizer", None)

    def __call__(self, text: str, borders: Sequence[int]) -> list[list[int]]:
        """The ids of a rendered text in one piece more than there are borders (places in the text, in order).

        Raises `BorderError` where parts would say something else than the whole.
        """
        whole = ids = self._specials.encode(text)
        pieces: list[list[int]] = []
        base = done = 0  # where the present part begins in the text; how many of its ids are given out
        for border in borders:
            before = self._before(text, border, ids) if base == 0 else self._part(text, base, border)
            n = len(before)
            if ids[:n] == before and not self._swallowed(text, border, before):
                pieces.append(ids[done:n])
                done = n
            else:
                if before[:done] != ids[:done]:
                    raise _not_in_parts()
                pieces.append(before[done:])
                base, done = border, 0
                ids = self._part(text, border, len(text))
        pieces.append(ids[done:])
        if base and self._said([i for piece in pieces for i in piece]) != self._said(whole):
            raise _not_in_parts()
        return pieces

    def _before(self, text: str, border: int, ids: list[int]) -> list[int]:
        """The ids of text[:border] by itself. Special tokens cut a text in sections that do not touch each other, so
        only the last one is tokenized again; it is the opening of an answer, and the same in every row."""
        places = self._specials.places(text) if self._sections else []
        own = [k for k, id in enumerate(ids) if id in self._specials.ids]
        number = bisect_left(places, border) - 1
        if number < 0 or len(own) != len(places):  # the token for what is unknown may come from any text
            return self._specials.encode(text[:border])
        place = places[number]
        section = text[place:border]
        if section not in self._openings:
            if len(self._openings) >= _OPENINGS:
                self._openings.clear()
            self._openings[section] = self._specials.encode(section)
        return [*ids[: own[number]], *self._openings[section]]

    def _part(self, text: str, start: int, end: int) -> list[int]:
        """The ids of text[start:end], as it continues what comes before."""
        if start == 0:
            return self._specials.encode(text[:end])
        encode, part = self._specials.encode, text[start:end]
        alone = encode(part)
        if not part or self._decode(encode("0") + encode("0")) == "00":
            return alone
        for anchor in _ANCHORS:
            first, both = encode(anchor), encode(anchor + part)
            if both[: len(first)] == first:
                return both[len(first) :]
        raise _not_in_parts()

    def _swallowed(self, text: str, border: int, before: list[int]) -> bool:
        """Whether a special token before the border takes white space after it away (its `rstrip`)."""
        return bool(before) and before[-1] in self._after and text[border : border + 1].isspace()

    def _said(self, ids: list[int]) -> str:
        """What ids say, up to what the tokenizer itself does to a text: its normalizer, swallowed white space."""
        text = self._swallowing.sub(lambda found: found[0].strip(), self._decode(ids))
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _not_in_parts() -> BorderError:
    return BorderError("the tokenizer cannot tokenize an answer apart from its prompt: token borders do not line up")

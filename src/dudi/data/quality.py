"""The quality filter of SEA-Instruct rows, and their strata, read from the columns that describe a prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dudi.data.files_by_language import is_named
from dudi.data.strata import Stratum, factorize

STRATUM = ("prompt_primary_domain", "prompt_primary_task", "prompt_complexity")
"""The joint distribution of these is kept by the sample (paper section 4.1)."""
_LANGUAGE = "prompt_primary_language"
_HARMFUL = re.compile(r"(^|[\s\[,;'\"])harmful")


def _is_true(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("true", "yes", "1")


def _is_harmless(value: str | None) -> bool:
    return value is None or not _HARMFUL.search(value.lower())


# Reason -> column and what a kept row has there. The first that fails is the reason a row is counted under.
_RULES: dict[str, tuple[str, Callable[[str | None], bool]]] = {
    "not excellent": ("prompt_input_quality", lambda value: value is not None and value.strip().lower() == "excellent"),
    "not coherent": ("prompt_is_coherent", _is_true),
    "not natural": ("prompt_is_natural", _is_true),
    "harmful": ("prompt_sensitivity", _is_harmless),
}
FILTER_COLUMNS = tuple(column for column, _ in _RULES.values())
FILTERS = (
    "prompt_input_quality is Excellent",
    "prompt_is_coherent",
    "prompt_is_natural",
    "prompt_sensitivity does not begin with Harmful",
    "prompt_primary_language names the row's language, or is missing",
)
"""What the quality filter keeps, in words, for the manifest."""


class QualityFilter:
    """Keeps rows marked excellent, coherent, natural and harmless, whose prompt is in the language of its file.

    The language rule: x of a row in language l is read as l by the templates and by every count, so a prompt
    that its own label calls another language does not belong there. A missing label keeps the row.
    """

    def __init__(self, language: str, on: bool, available: frozenset[str]) -> None:
        self._rules = dict(_RULES) if on else {}
        if on and _LANGUAGE in available:
            self._rules["other language"] = (_LANGUAGE, lambda value: value is None or is_named(value, language))
        self.columns = tuple(column for column, _ in self._rules.values())
        self.reasons = tuple(self._rules)

    def failed(self, batch: Any) -> npt.NDArray[np.int8]:
        """For each row, 0 if it is kept, else 1 + the index of its reason in `reasons`."""
        result = np.zeros(batch.num_rows, dtype=np.int8)
        for i, (column, rule) in enumerate(self._rules.values()):
            values, codes = factorize(batch.column(column))
            keep = np.array([rule(value) for value in values], dtype=bool)
            result[(result == 0) & ~keep[codes]] = i + 1
        return result

    def reason(self, failed: int) -> str | None:
        """Why a row is left out, by its number in `failed`; None if it is kept."""
        return self.reasons[failed - 1] if failed else None

    def count(self, failed: npt.NDArray[np.int8], into: Counter[str]) -> None:
        """Add the rows left out to the counts by reason."""
        for i, number in enumerate(np.bincount(failed, minlength=len(self.reasons) + 1)[1:]):
            if number:
                into[self.reasons[i]] += int(number)


class StratumIndex:
    """Numbers strata in the order met."""

    def __init__(self) -> None:
        self.names: list[Stratum] = []
        self._index: dict[Stratum, int] = {}

    def of(self, batch: Any, columns: tuple[str, ...]) -> npt.NDArray[np.int32]:
        """Each row's stratum number. Without columns all rows are one stratum."""
        combined = np.zeros(batch.num_rows, dtype=np.int64)
        parts = [factorize(batch.column(column)) for column in columns]
        for values, codes in parts:
            combined = combined * max(1, len(values)) + codes
        unique, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
        numbers = np.empty(len(unique), dtype=np.int32)
        for i, row in enumerate(first):
            numbers[i] = self.number(tuple(values[codes[row]] or "" for values, codes in parts))
        return numbers[inverse]

    def number(self, name: Stratum) -> int:
        """The number of a stratum."""
        if name not in self._index:
            self._index[name] = len(self.names)
            self.names.append(name)
        return self._index[name]

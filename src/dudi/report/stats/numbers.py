"""Numbers that statistics are made of: finite, in one row, enough of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dudi.errors import DudiError

Floats = NDArray[np.float64]
Numbers = Sequence[float] | Floats


def row(values: Numbers, what: str, at_least: int = 1) -> Floats:
    """The values as an array of one dimension. Raises `DudiError` where one is not finite, or there are too few."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise DudiError(f"{what}: expected one row of numbers, found an array of shape {found.shape}")
    if len(found) < at_least:
        few = f"{len(found)} value{'' if len(found) == 1 else 's'}"
        raise DudiError(f"{what}: {few} where at least {at_least} are needed")
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise DudiError(f"{what}: value {place} is {found[place]}; expected finite numbers")
    return found


def between(value: float, low: float, high: float, what: str) -> None:
    """Raises `DudiError` for a share that is not strictly between the two; NaN is not."""
    if not low < value < high:
        raise DudiError(f"{what}: expected a number between {low:g} and {high:g}, found {value}")


def positive(value: int, what: str) -> None:
    """Raises `DudiError` for a number below 1."""
    if value < 1:
        raise DudiError(f"{what}: expected a whole number of at least 1, found {value}")

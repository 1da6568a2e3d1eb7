"""Stratified sampling as a pure function of the seed and the row numbers: no state, no dependence on reading order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dudi.draws import draw

Stratum = tuple[str, ...]


def priorities(rows: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.uint64]:
    """A random 64-bit number for each row number; the rows with the smallest are the sample.

    SplitMix64's finalizer, a bijection: no two rows of one key have the same number, so there are no ties.
    """
    x = rows.astype(np.uint64) + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def allocate(counts: Sequence[int], total: int, *key: int | str) -> list[int]:
    """How many of `total` rows each stratum gets: in proportion to its count, by the method of largest remainders.

    Sums to `total` exactly (which is at most the sum of the counts), gives no stratum more than it has, and differs
    from exact proportion by less than one row. Equal remainders are ordered by a draw from the key.
    """
    everything = sum(counts)
    assert 0 <= total <= everything
    if total == 0:
        return [0] * len(counts)
    shares = [total * count // everything for count in counts]
    left = total - sum(shares)
    order = sorted(range(len(counts)), key=lambda i: (-(total * counts[i] % everything), draw(*key, i)))
    for i in order[:left]:
        shares[i] += 1
    return shares


class Strata:
    """The rows of one language by stratum, each stratum in its random order. 16 bytes a row that passed the filter."""

    def __init__(self, stratum_of_row: npt.NDArray[np.int32], names: Sequence[Stratum], *key: int | str) -> None:
        """`stratum_of_row` holds an index into `names`, or -1 for a row left out by the filter."""
        order = sorted(range(len(names)), key=lambda i: names[i])  # not the order in which the file met them
        rows = np.flatnonzero(stratum_of_row >= 0)
        rank = np.empty(max(1, len(names)), dtype=np.int32)
        rank[order] = np.arange(len(names), dtype=np.int32)
        strata = rank[stratum_of_row[rows]]
        rows = rows[np.lexsort((priorities(rows, draw(*key)), strata))]
        ends = np.cumsum(np.bincount(strata, minlength=len(names)))
        self.names: list[Stratum] = [names[i] for i in order]
        self.queues: list[npt.NDArray[np.int64]] = list(np.split(rows, ends[:-1])) if names else []

    @property
    def counts(self) -> list[int]:
        """Rows of each stratum."""
        return [len(queue) for queue in self.queues]


def factorize(values: Any) -> tuple[list[str | None], npt.NDArray[np.int64]]:
    """A Parquet column as its different values, as text, and each row's index into them.

    So a rule written in plain Python runs once for each different value instead of once for each row.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        values = pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
    encoded = values.dictionary_encode(null_encoding="encode")
    raw = encoded.dictionary.cast(pa.large_binary()).to_pylist()  # Parquet does not promise valid UTF-8
    texts = [None if value is None else value.decode("utf-8", "replace") for value in raw]
    return texts, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)

"""Which positions are projected together: chunks, and groups of chunks.

Positions of several views may share a chunk. A group's chunks have all to be projected before any of them has a
gradient: such are whole responses that a loss compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

Part = tuple[int, slice]
"""Some positions of a view: its place, and which."""


def groups(lengths: Sequence[int], row: Mapping[int, Tensor], rows: int, chunk: int) -> Iterator[list[list[Part]]]:
    """The positions of all views, in chunks of at most `chunk` positions.

    lengths: positions by view; row: of the views that are compared, by place, the row of each position, ascending;
    rows: of the micro-batch. A group of those views holds the responses of as many rows as fit one chunk, or of one
    longer row, in several chunks. Positions of other views are groups of one chunk.
    """
    ends = {place: [0, *torch.bincount(of, minlength=rows).cumsum(0).tolist()] for place, of in row.items()}
    first = 0
    while ends and first < rows:
        last = first + 1
        while last < rows and sum(end[last + 1] - end[first] for end in ends.values()) <= chunk:
            last += 1
        parts = [(place, slice(end[first], end[last])) for place, end in ends.items() if end[last] > end[first]]
        if sum(of.stop - of.start for _, of in parts) > chunk:
            yield [[(place, piece)] for place, of in parts for piece in chunks(of.stop, chunk, of.start)]
        elif parts:
            yield [parts]
        first = last
    for place, length in enumerate(lengths):
        if place not in row:
            yield from ([[(place, piece)]] for piece in chunks(length, chunk))


def within(parts: Sequence[Part]) -> Iterator[tuple[slice, Part]]:
    """Each part of a chunk, after its rows of the chunk."""
    start = 0
    for place, of in parts:
        size = of.stop - of.start
        yield slice(start, start + size), (place, of)
        start += size


def gathered(states: Sequence[Tensor], parts: Sequence[Part]) -> Tensor:
    """[c, H]: the states of a chunk's positions; states: by view, [n, H]."""
    found = [states[place][of] for place, of in parts]
    return found[0] if len(found) == 1 else torch.cat(found)


def chunks(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `size` from start to stop."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))

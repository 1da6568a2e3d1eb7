"""Micro-batches: every row once, under both limits, rows of similar lengths together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from dudi.methods import Response, View
from dudi.training.window import Item, Window


def window_of(sizes: Sequence[Sequence[tuple[int, int] | None]]) -> Window:
    """A window with the given (prompt, response) lengths, by view and row."""
    names = [View(Response.GOLD), View(Response.Y_PRIME), View(Response.Y_TILDE)]
    items = {
        view: [None if s is None else Item((1,) * s[0], None, (1,) * s[1], True) for s in column]
        for view, column in zip(names, sizes, strict=False)
    }
    n = len(sizes[0])
    return Window([None] * n, [1.0] * n, items)  # type: ignore[list-item]


def random_windows() -> Iterator[Window]:
    g = torch.Generator().manual_seed(0)
    for _ in range(40):
        n, views_ = (int(torch.randint(1, high, (1,), generator=g)) for high in (12, 4))
        yield window_of(
            [
                [
                    None
                    if float(torch.rand(1, generator=g)) < 0.2
                    else tuple(torch.randint(1, 30, (2,), generator=g).tolist())
                    for _ in range(n)
                ]
                for _ in range(views_)
            ]  # type: ignore[misc]
        )


def padded(window: Window, places: Sequence[int]) -> int:
    """Padded student tokens of some rows, over all views: rows x widest, a view none of them has costs nothing."""
    width = 0
    for items in window.items.values():
        width += max((len(i.student) + len(i.response) for p in places if (i := items[p])), default=0)
    return width * len(places)


@pytest.mark.parametrize("rows, tokens", [(1, 10**6), (3, 10**6), (100, 10**6), (100, 1), (100, 90), (4, 120)])
def test_micro_batches_cover_every_row_once_under_both_limits(rows: int, tokens: int) -> None:
    for window in random_windows():
        found = list(window.micro_batches(rows, tokens))
        assert sorted(p for places in found for p in places) == list(range(len(window.rows)))
        for places, after in zip(found, [*found[1:], []], strict=True):
            assert 0 < len(places) <= rows
            assert padded(window, places) <= tokens or len(places) == 1
            if after:  # and none is smaller than it has to be
                assert len(places) == rows or padded(window, [*places, after[0]]) > tokens


def test_one_row_always_fits() -> None:
    window = window_of([[(500, 500), (1, 1), (500, 500)]])
    assert list(window.micro_batches(8, 10)) == [[0], [2], [1]]


def test_micro_batches_hold_rows_of_similar_lengths_the_longest_first() -> None:
    """Burmese beside English: in the rows' own order every micro-batch would be as wide as the widest row."""
    window = window_of([[(400, 100), (20, 5), (40, 9), (300, 90), (21, 5), (10, 2)]])
    found = list(window.micro_batches(2, 10**6))
    assert found == [[0, 3], [2, 4], [1, 5]]
    assert sum(padded(window, places) for places in found) < 0.7 * sum(
        padded(window, [row, row + 1]) for row in (0, 2, 4)
    )

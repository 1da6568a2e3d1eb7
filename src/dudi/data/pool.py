"""Pool: the rows of one language as they stream by, all kept or a seeded sample."""

from __future__ import annotations

import heapq

from dudi.draws import draw
from dudi.example import Example


class Pool:
    """The rows of one language: all of them, or a seeded uniform sample that is kept as the rows stream by.

    A row's place in the draw is a pure function of (seed, language, position in the data), so batches do not matter.
    The evaluation rows have a draw of their own and do not change with the number of training rows.
    """

    def __init__(self, language: str, seed: int, rows: int | None, held_out: int) -> None:
        self._key, self._rows, self._held_out = (seed, language), rows, held_out
        self._eval = _Smallest(held_out)
        # The evaluation rows are among these too, and are taken out at the end.
        self._train = _Smallest(None if rows is None else rows + held_out)

    def add(self, position: int, example: Example) -> None:
        """Offer one valid row."""
        self._eval.add(draw("eval", *self._key, position), position, example)
        self._train.add(draw("train", *self._key, position), position, example)

    def result(self) -> tuple[list[Example], list[Example]]:
        """(train, eval), each in the order of the data."""
        held_out = self._eval.items()
        out = {position for _, position, _ in held_out}
        train = [item for item in self._train.items() if item[1] not in out][: self._rows]
        return _in_order(train), _in_order(held_out)


_Item = tuple[int, int, Example]


def _in_order(items: list[_Item]) -> list[Example]:
    return [example for _, _, example in sorted(items, key=lambda item: item[1])]


class _Smallest:
    """The `size` items with the smallest numbers; all of them without a size."""

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._heap: list[_Item] = []  # numbers negated: the largest on top

    def add(self, number: int, position: int, example: Example) -> None:
        item = (-number, position, example)
        if self._size is None:
            self._heap.append(item)
        elif len(self._heap) < self._size:
            heapq.heappush(self._heap, item)
        elif self._size and item[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, item)

    def items(self) -> list[_Item]:
        """Smallest number first."""
        return sorted(((-number, position, example) for number, position, example in self._heap), key=lambda i: i[:2])

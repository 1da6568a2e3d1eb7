"""What a page is made of. `html` and `markdown` print the same blocks, so that the two cannot differ."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Text:
    """A paragraph. kind: "", "lead" (said large), "note" (said in small) or "warning"."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list. kind: as of `Text`."""

    lines: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Value:
    """A cell of a table: what it says, and (below it, in small) what that means against the baseline."""

    text: str
    under: str = ""
    side: str = ""
    """up, down or empty: colours what the sign says already."""

    @property
    def line(self) -> str:
        """Both in one line, what is below in brackets of its own or ours."""
        bracketed = self.under if self.under.startswith("[") else f"({self.under})"
        return f"{self.text} {bracketed}" if self.under else self.text


@dataclass(frozen=True)
class Table:
    """The first column names the row, the others are numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value | str, ...], ...]
    sums: int = 0
    """How many of the last rows are averages or sums."""

    @property
    def words(self) -> tuple[bool, ...]:
        """For each column, whether it holds words, which begin on the left, and no numbers."""
        return tuple(
            place == 0
            or any(isinstance(cell, str) and cell[:1].isalpha() for cell in (row[place] for row in self.rows))
            for place in range(len(self.head))
        )


@dataclass(frozen=True)
class Figure:
    """A picture, with what it shows in words. name: of its file, without the ending."""

    name: str
    caption: str
    png: bytes = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height at which it is shown: its pixels are for screens of twice the density."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width // 3 * 2, height // 3 * 2


@dataclass(frozen=True)
class Figures:
    """Pictures side by side, as many as fit."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Given:
    """A response: of which models, its language, its mark in a word (right, wrong, a score), what else to know."""

    models: tuple[str, ...]
    text: str
    language: str
    mark: str
    sign: str = ""
    note: str = ""


@dataclass(frozen=True)
class Answered:
    """An item with the responses of all models. prompt: (role, text); empty where it is not known."""

    id: str
    task: str
    language: str
    prompt: tuple[tuple[str, str], ...]
    accepted: tuple[str, ...]
    rule: str
    asked: str
    """The language that the answer should be in."""
    given: tuple[Given, ...]


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    title: str
    blocks: tuple[Block, ...]
    open: bool = False


@dataclass(frozen=True)
class Sub:
    """A heading inside a section."""

    title: str


Block = Text | Bullets | Table | Figures | Answered | Folded | Sub


@dataclass(frozen=True)
class Section:
    """A part of the page. key: its anchor."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """Title, a few lines on what was run, sections."""

    title: str
    lines: tuple[str, ...]
    sections: tuple[Section, ...]

    def figures(self) -> list[Figure]:
        """All its pictures."""
        return [figure for section in self.sections for figure in _figures(section.blocks)]


def _figures(blocks: tuple[Block, ...]) -> list[Figure]:
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figures):
            found += block.figures
        elif isinstance(block, Folded):
            found += _figures(block.blocks)
    return found


def number(value: float | None, digits: int = 1) -> str:
    """A number, with a real minus; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign; nothing that rounds to 0 has one."""
    if value is None:
        return "-"
    text = f"{value:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def percent(share: float | None) -> str:
    """A share of 1, in percent."""
    return "-" if share is None else f"{100 * share:.0f}\u00a0%"

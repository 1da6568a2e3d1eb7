"""The blocks as Markdown: the same tables, the pictures as files beside it. Responses are left to the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dudi.report.blocks import Answered, Block, Bullets, Figures, Folded, Page, Sub, Table, Text, Value

_SPECIAL = re.compile(r"([\\`*\[\]<>|#&~])")


def markdown(page: Page) -> str:
    """A page as Markdown."""
    out = [f"# {escaped(page.title)}", "", *(f"- {escaped(line)}" for line in page.lines)]
    for section in page.sections:
        out += ["", f"## {escaped(section.title)}"]
        if any(isinstance(block, Folded) and _has_answers(block) for block in section.blocks):
            out += ["", "See report.html."]
        else:
            out += [line for block in section.blocks for line in _block(block, 3)]
    return "\n".join(out) + "\n"


def escaped(text: str) -> str:
    """A text in one line, none of whose characters means anything to Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _has_answers(block: Folded) -> bool:
    return any(isinstance(inner, Answered) for inner in block.blocks)


def _block(block: Block, level: int) -> list[str]:
    if isinstance(block, Text):
        return ["", escaped(block.text)]
    if isinstance(block, Bullets):
        return ["", *(f"- {escaped(item)}" for item in block.lines)]
    if isinstance(block, Sub):
        return ["", f"{'#' * level} {escaped(block.title)}"]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figures):
        return ["", *(f"![{escaped(f.caption)}](figures/{f.name}.png)" for f in block.figures)]
    if isinstance(block, Folded):
        return ["", f"{'#' * level} {escaped(block.title)}", *(l for b in block.blocks for l in _block(b, level + 1))]
    raise AssertionError(f"{type(block).__name__} is not written as Markdown")


def _table(table: Table) -> list[str]:
    rows = [_line(table.head), _line(["---" if words else "---:" for words in table.words])]
    return ["", f"{escaped(table.caption)}:", "", *rows, *(_line([_cell(cell) for cell in row]) for row in table.rows)]


def _cell(cell: Value | str) -> str:
    return cell if isinstance(cell, str) else cell.line


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"

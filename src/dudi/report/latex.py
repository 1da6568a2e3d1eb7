"""The tables of a page as LaTeX, to be read by \\input; what else the page says is a comment."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dudi.report.blocks import Block, Bullets, Folded, Page, Sub, Table, Text, Value

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "±": r"$\pm$",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "○": r"$\circ$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
_FOUND = re.compile("[" + re.escape("".join(_SPECIAL)) + "]")


def latex(page: Page) -> str:
    """Each table of a page as a `table`; the preamble needs \\usepackage{booktabs}."""
    out = [_comment(line) for line in (page.title, "needs \\usepackage{booktabs}", *page.lines)]
    for section in page.sections:
        out += ["", _comment(section.title), *(line for block in section.blocks for line in _block(block))]
    return "\n".join(out) + "\n"


def escaped(text: str) -> str:
    """A text in one line, none of whose characters means anything to TeX."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return _FOUND.sub(lambda found: _SPECIAL[found[0]], " ".join(plain.split()))


def _comment(text: str) -> str:
    return "% " + " ".join(text.split())


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [_comment(block.text)]
    if isinstance(block, Bullets):
        return [_comment(f"- {line}") for line in block.lines]
    if isinstance(block, Sub):
        return ["", _comment(block.title)]
    if isinstance(block, Table):
        return ["", *_table(block)]
    if isinstance(block, Folded):
        return ["", _comment(block.title), *(line for inner in block.blocks for line in _block(inner))]
    raise AssertionError(f"{type(block).__name__} is not written as LaTeX")


def _table(table: Table) -> list[str]:
    plain, sums = (table.rows[: len(table.rows) - table.sums], table.rows[len(table.rows) - table.sums :])
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        _line(table.head),
        r"\midrule",
        *(_line([_cell(cell) for cell in row]) for row in plain),
        *([r"\midrule"] if plain and sums else []),
        *(_line([_cell(cell) for cell in row]) for row in sums),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def _cell(cell: Value | str) -> str:
    return cell if isinstance(cell, str) else cell.line


def _line(cells: Sequence[str]) -> str:
    return " & ".join(f"{{{escaped(cell)}}}" if cell.startswith("[") else escaped(cell) for cell in cells) + r" \\"

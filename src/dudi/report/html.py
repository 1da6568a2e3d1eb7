"""The blocks as one HTML page that asks nothing of the network: pictures and style lie inside it."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dudi.report.blocks import Block, Page, Value


def html(page: Page) -> str:
    """A page as HTML; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = _kind
    environment.filters["value"] = lambda cell: cell if isinstance(cell, Value) else Value(cell)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    return environment.get_template("page.html.jinja").render(page=page)


def _kind(block: Block) -> str:
    """Which part of the template prints a block."""
    return type(block).__name__

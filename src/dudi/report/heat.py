"""A table of scores as colours, as PNG: a row a method, a column a language, each number in its cell."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from dudi.report.figures import DPI, STYLE, WIDTH


@dataclass(frozen=True)
class Heat:
    """values: a row for each of `rows`, a number for each of `columns`; NaN: there is none."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


def draw_heat(heat: Heat) -> bytes:
    """The map as PNG, light for low and dark for high scores, the first row on top. Same input, same bytes."""
    there = [value for row in heat.values for value in row if math.isfinite(value)]
    low, high = min(there, default=0.0), max(there, default=1.0)
    inches = 0.75 + 0.27 * len(heat.rows)
    with rc_context({**STYLE, "axes.grid": False}):
        canvas = Canvas(figsize=(WIDTH, inches), dpi=DPI, facecolor="white")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        axes.imshow(heat.values, cmap="Blues", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        for row, values in enumerate(heat.values):
            for column, value in enumerate(values):
                dark = math.isfinite(value) and value > low + 0.6 * (high - low)
                text = f"{value:.0f}" if math.isfinite(value) else "-"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axes.set_title(heat.title)
        axes.set_yticks(range(len(heat.rows)), heat.rows)
        axes.set_xticks(range(len(heat.columns)), heat.columns)
        axes.tick_params(length=0)
        left = min(0.06 + 0.0165 * max(map(len, heat.rows)), 0.45)
        canvas.subplots_adjust(left=left, right=0.98, top=1 - 0.32 / inches, bottom=0.3 / inches)
        file = io.BytesIO()
        canvas.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()

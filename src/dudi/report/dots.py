"""A chart of scores with their intervals as PNG: one row a model, or one row a language with a dot for each model."""

from __future__ import annotations

import io
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from dudi.records import Average
from dudi.report.figures import COLOURS, DPI, STYLE, WIDTH


@dataclass(frozen=True)
class Dots:
    """rows: the names at the left; series: (name, an average for each row), named below the chart if there are several.

    Colours go by series, or where there is only one by row: a model has the same one in both charts.
    """

    title: str
    rows: tuple[str, ...]
    series: tuple[tuple[str, tuple[Average, ...]], ...]


def draw_dots(chart: Dots) -> bytes:
    """The chart as PNG, 0 to 100 from left to right, the first row on top. Same input, same bytes."""
    labelled = len(chart.series) > 1
    lines = -(-len(chart.series) // 3) if labelled else 0
    inches = 0.7 + (0.34 if labelled else 0.27) * len(chart.rows) + 0.2 * lines
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        canvas = Canvas(figsize=(WIDTH, inches), dpi=DPI, facecolor="white")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        for at, (name, averages) in enumerate(chart.series):
            shift = (at - (len(chart.series) - 1) / 2) * (0.7 / max(len(chart.series), 1)) if labelled else 0.0
            for row, average in enumerate(averages):
                if average.mean is None:
                    continue
                colour = COLOURS[(at if labelled else row) % len(COLOURS)]
                low, high = (average.mean if end is None else end for end in (average.low, average.high))
                axes.plot([low, high], [row + shift] * 2, color=colour, linewidth=1.6, solid_capstyle="butt")
                axes.plot([average.mean], [row + shift], "o", color=colour, markersize=4.2 if labelled else 5)
                if not labelled:
                    axes.annotate(
                        f"{average.mean:.1f}", (high, row), xytext=(5, 0), textcoords="offset points", va="center"
                    )
            if labelled:
                axes.plot([], [], "o-", color=COLOURS[at % len(COLOURS)], markersize=4.2, label=name)
        axes.set_title(chart.title)
        axes.set_yticks(range(len(chart.rows)), chart.rows)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.tick_params(axis="y", length=0)
        left = 0.06 + 0.0165 * max(map(len, chart.rows))
        canvas.subplots_adjust(
            left=min(left, 0.4), right=0.97, top=1 - 0.32 / inches, bottom=(0.3 + 0.2 * lines) / inches
        )
        if labelled:
            handles, names = axes.get_legend_handles_labels()
            canvas.legend(handles, names, loc="lower center", ncols=3, borderaxespad=0.1)
        file = io.BytesIO()
        canvas.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()

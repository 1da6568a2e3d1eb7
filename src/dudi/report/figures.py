"""Line charts as PNG: one panel a file, small enough that its text can be read on a phone. Same input, same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00", "#56B4E9", "#5B3A8C", "#444444")
"""Okabe and Ito's, apart under the common kinds of colour blindness; the yellow is darkened for white paper."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
WIDTH, HEIGHT, DPI = 4.6, 2.9, 144
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "dudi",
}


@dataclass(frozen=True)
class Curve:
    """Values over steps. colour: its number in the palette; dashed: the second of a pair; dots: not joined."""

    label: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    colour: int
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart. at_ends: many curves, named at their right end, without the values behind them; else a legend."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    share: bool = False
    at_ends: bool = False


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over a window of about a tenth of the curve around each point; what is not finite is left out."""
    half = len(values) // 20 if len(values) >= 10 else 0
    result = []
    for i in range(len(values)):
        near = [v for v in values[max(i - half, 0) : i + half + 1] if math.isfinite(v)]
        result.append(sum(near) / len(near) if near and math.isfinite(values[i]) else math.nan)
    return result


def draw(panel: Panel) -> bytes:
    """A panel as PNG."""
    with rc_context(STYLE):
        labels = list(dict.fromkeys(curve.label for curve in panel.curves)) if _has_legend(panel) else []
        columns = 1 if any(len(label) > 22 for label in labels) else 2
        below = 0.18 * math.ceil(len(labels) / columns)
        canvas = Canvas(figsize=(WIDTH, HEIGHT + below), dpi=DPI, facecolor="white")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        for curve in panel.curves:
            _draw_curve(axes, curve, raw=not panel.at_ends)
        axes.set_title(panel.title)
        axes.set_xlabel("step")
        axes.set_ylabel(panel.unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if panel.share:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if panel.at_ends:
            _name_at_ends(axes, panel.curves)
        right = 0.92 if panel.at_ends else 0.97
        bottom = (0.5 + below) / (HEIGHT + below)
        canvas.subplots_adjust(left=0.15, right=right, top=1 - 0.32 / (HEIGHT + below), bottom=bottom)
        if labels:
            handles, names = axes.get_legend_handles_labels()
            canvas.legend(handles, names, loc="lower left", bbox_to_anchor=(0.1, 0.0), ncols=columns, borderaxespad=0.1)
        file = io.BytesIO()
        canvas.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def _has_legend(panel: Panel) -> bool:
    return not panel.at_ends and len({curve.label for curve in panel.curves}) > 1


def _draw_curve(axes: Axes, curve: Curve, raw: bool) -> None:
    colour = COLOURS[curve.colour % len(COLOURS)]
    dash = DASHES[(curve.colour // len(COLOURS) * 2 + curve.dashed) % len(DASHES)]
    if curve.dots:
        axes.plot(
            curve.steps, curve.values, "D", color=colour, markersize=4.5, label=curve.label, markerfacecolor="white"
        )
        return
    if len(curve.steps) == 1:
        axes.plot(curve.steps, curve.values, "o", color=colour, markersize=5, label=curve.label)
        return
    line = smoothed(curve.values)
    if raw and line != list(curve.values):
        axes.plot(curve.steps, curve.values, color=colour, linewidth=0.9, alpha=0.3, linestyle=dash)
    axes.plot(curve.steps, line, color=colour, linewidth=1.8, linestyle=dash, label=curve.label)


def _name_at_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Names at the right end of the curves, moved apart where they would overlap."""
    ends = []
    for curve in curves:
        line = [v for v in smoothed(curve.values) if math.isfinite(v)]
        if line:
            ends.append((line[-1], curve))
    ends.sort(key=lambda end: (end[0], end[1].label))
    low, high = axes.get_ylim()
    gap = (high - low) * 0.072
    places = [value for value, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    over = max(places[-1] - high, 0) if places else 0
    for i in range(len(places) - 1, -1, -1):  # back below the top, pushing down those in the way
        top = high if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], top) if over else places[i]
    for place, (_, curve) in zip(places, ends, strict=True):
        axes.annotate(
            curve.label,
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            color=COLOURS[curve.colour % len(COLOURS)],
            va="center",
            fontsize=8.5,
            fontweight="bold",
            annotation_clip=False,
        )

"""What a run says at its end: the data by language, and how each signal moved. From the run's files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dudi.files import read_lines, write_text
from dudi.records import fifths
from dudi.training.collapse import SAID, spans


def write_summary(folder: Path) -> None:
    """summary.json, and the same as Markdown in summary.md."""
    summary = summarize(folder)
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
    write_text(folder / "summary.md", markdown(summary))


def summarize(folder: Path) -> dict[str, Any]:
    """{data: report by language with lengths, stages: by name, first and last means of each signal, warnings}."""
    report = json.loads((folder / "data" / "report.json").read_text(encoding="utf-8"))["languages"]
    lengths = json.loads((folder / "lengths.json").read_text(encoding="utf-8"))
    stages = {}
    for metrics in sorted(folder.glob("*/metrics.jsonl")):
        lines = read_lines(metrics)
        train = [line for line in lines if "signal" in line]
        if train:
            stages[metrics.parent.name] = {
                "steps": train[-1]["step"],
                "signals": {name: _moved(train, name) for name in _names(train)},
                "eval": [{"step": line["step"], "loss": line["eval"]["loss"]} for line in lines if "eval" in line],
                "rollouts": _rollouts(train),
                "collapse": spans(train),
            }
    return {"run": folder.name, "data": report, "lengths": lengths, "stages": stages}


def _names(lines: list[dict[str, Any]]) -> list[str]:
    return sorted({name for line in lines for name in line["signal"]})


def _moved(lines: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Weighted mean over the first and the last fifth of the steps (at least one line each)."""
    entries = [(line["step"], line["signal"][name]) for line in lines if name in line["signal"]]
    first, last = fifths(entries, lines[-1]["step"])
    return {"first": _mean(first, "loss", "count"), "last": _mean(last, "loss", "count")}


def _mean(entries: list[dict[str, Any]], key: str, weight: str) -> float:
    return float(sum(e[key] * e[weight] for e in entries) / sum(e[weight] for e in entries))


def _rollouts(lines: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """By view and language, over the last fifth of the steps: mean length, share cut at the limit, share stopped."""
    _, late = fifths([(line["step"], line["rollout"]) for line in lines if "rollout" in line], lines[-1]["step"])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for view in sorted({view for rollouts in late for view in rollouts}):
        entries = [rollouts[view]["by_language"] for rollouts in late if view in rollouts]
        for language in sorted({language for entry in entries for language in entry}):
            here = [entry[language] for entry in entries if "rows" in entry.get(language, {})]
            if here:
                means = {key: _mean(here, key, "rows") for key in ("length", "share_cut", "eos_rate")}
                found.setdefault(view, {})[language] = means
    return found


def markdown(summary: dict[str, Any]) -> str:
    """The summary as tables."""
    out = [f"# Run {summary['run']}", "", "## Data", ""]
    out += [_line([*_DATA.values(), *_LENGTHS.values()]), _line(["---"] * (len(_DATA) + len(_LENGTHS)))]
    for language, row in summary["data"].items():
        length = summary["lengths"].get(language, {})
        cells = [language if key == "language" else _cell(row[key]) for key in _DATA]
        out.append(_line([*cells, *(_cell(length.get(key, "")) for key in _LENGTHS)]))
    reasons = [
        f"- {l}: {kind}: {_reasons(row[kind])}" for l, row in summary["data"].items() for kind in _WHY if row[kind]
    ]
    refused = [
        f"- {l}: refused: {_reasons(row['refused'])}" for l, row in summary["lengths"].items() if row.get("refused")
    ]
    out += ["", *reasons, *refused] if reasons or refused else []
    for name, stage in summary["stages"].items():
        out += ["", f"## Stage {name} ({stage['steps']} steps)", "", _line(["signal", "first fifth", "last fifth"])]
        out.append(_line(["---"] * 3))
        out += [_line([s, f"{m['first']:.4f}", f"{m['last']:.4f}"]) for s, m in stage["signals"].items()]
        out += [""] if stage["collapse"] else []
        out += [
            f"- Warning, steps {w['from']} to {w['to']}: up to {w['largest']:.0%} of rollouts {w['view']} in"
            f" {w['language']} {SAID[w['what']]}"
            for w in stage["collapse"]
        ]
        for view, languages in stage["rollouts"].items():
            out += [
                "",
                f"Rollouts {view}, last fifth of the steps:",
                "",
                _line(["language", "mean length", "share cut", "EOS rate"]),
            ]
            out.append(_line(["---"] * 4))
            for language, row in languages.items():
                cells = [f"{row[key]:.2f}" for key in ("length", "share_cut", "eos_rate")]
                out.append(_line([language, *cells]))
    return "\n".join(out) + "\n"


_DATA = {
    "language": "language",
    "read": "read",
    "duplicated": "duplicated",
    "filtered": "filtered",
    "broken": "broken",
    "zawgyi": "Zawgyi",
    "undrawn": "not drawn",
    "eval": "eval",
    "kept": "kept",
}
_LENGTHS = {"left_out": "left out (x too long)", "cut": "y cut", "characters_per_token": "characters per token"}
_WHY = ("broken", "filtered")


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _cell(value: Any) -> str:
    return str(sum(value.values())) if isinstance(value, dict) else str(value)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"

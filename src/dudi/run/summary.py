"""What a run says at its end: the data by language, and how each signal moved. From the run's files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dudi.data.report import SourceRows
from dudi.files import read_lines, write_text
from dudi.records import fifths
from dudi.training import phases
from dudi.training.collapse import SAID, spans
from dudi.training.monitors import METRICS, TIMES
from dudi.training.stored import CUT, said_of_cut


def write_summary(folder: Path) -> None:
    """summary.json, and the same as Markdown in summary.md."""
    summary = summarize(folder)
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False))
    write_text(folder / "summary.md", markdown(summary))


def summarize(folder: Path) -> dict[str, Any]:
    """{data: report by language with lengths, sources: where there are several, what each gives; stages: by name, first
    and last means of each signal, warnings; answers: of each generation stage, how many were cut; phases: by stage,
    seconds and bytes at the peak}."""
    report = json.loads((folder / "data" / "report.json").read_text(encoding="utf-8"))
    lengths = json.loads((folder / "lengths.json").read_text(encoding="utf-8"))
    here = sorted((f for f in folder.glob("[0-9]*-*") if f.is_dir()), key=lambda f: int(f.name.partition("-")[0]))
    cut = {f.name: json.loads((f / CUT).read_text(encoding="utf-8")) for f in here if (f / CUT).is_file()}
    return {
        "run": folder.name,
        "data": report["languages"],
        **({"sources": report["sources"]} if "sources" in report else {}),
        "lengths": lengths,
        "stages": {f.name: _stage(read_lines(f / METRICS)) for f in here if (f / METRICS).is_file()},
        "answers": cut,
        "phases": {f.name: _phases(f) for f in here},
    }


def _stage(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A training; one that trained on nothing has no signals."""
    train = [line for line in lines if "eval" not in line]
    told = [line for line in train if "signal" in line]
    return {
        "steps": train[-1]["step"] if train else 0,
        "signals": {name: _moved(told, name) for name in _names(told)},
        "eval": [{"step": line["step"], "loss": line["eval"]["loss"]} for line in lines if "eval" in line],
        "rollouts": _rollouts(train),
        "collapse": spans(train),
    }


def _phases(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of all phases, those of steps and those outside, and peaks of memory."""
    kept = phases.read(folder)
    seconds: dict[str, float] = dict(kept["seconds"])
    for line in read_lines(folder / TIMES):
        for name, value in line.items():
            if name != "step":
                seconds[name] = seconds.get(name, 0.0) + value
    return {"seconds": {name: round(value, 1) for name, value in seconds.items()}, "memory": dict(kept["memory"])}


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
    sources = [f"- {SourceRows(**one).line()}" for one in summary.get("sources", [])]
    out += ["", *sources, *reasons, *refused] if sources or reasons or refused else []
    for name, splits in summary["answers"].items():
        out += ["", f"## Stage {name}", ""]
        out += [f"- {split}: {said_of_cut(languages)}" for split, languages in splits.items()]
    for name, stage in summary["stages"].items():
        out += _stage_lines(name, stage)
    return "\n".join([*out, *_phase_lines(summary["phases"])]) + "\n"


def _stage_lines(name: str, stage: dict[str, Any]) -> list[str]:
    out = ["", f"## Stage {name} ({stage['steps']} steps)", ""]
    if not stage["signals"]:
        return [*out, "Warning: no signal had a token to train on."]
    out += [_line(["signal", "first fifth", "last fifth"]), _line(["---"] * 3)]
    out += [_line([s, f"{m['first']:.4f}", f"{m['last']:.4f}"]) for s, m in stage["signals"].items()]
    if stage["eval"]:
        held_out = ", ".join(f"{e['loss']:.4f} (step {e['step']})" for e in stage["eval"])
        out += ["", f"Loss on the rows held out: {held_out}"]
    out += [""] if stage["collapse"] else []
    out += [
        f"- Warning, steps {w['from']} to {w['to']}: up to {w['largest']:.0%} of rollouts {w['view']} in"
        f" {w['language']} {SAID[w['what']]}"
        for w in stage["collapse"]
    ]
    for view, languages in stage["rollouts"].items():
        out += ["", f"Rollouts {view}, last fifth of the steps:", ""]
        out += [_line(["language", "mean length", "share cut", "EOS rate"]), _line(["---"] * 4)]
        for language, row in languages.items():
            out.append(_line([language, *(f"{row[key]:.2f}" for key in ("length", "share_cut", "eos_rate"))]))
    return out


TIME = "## Time and memory"
"""The one part of a summary that no two runs share."""


def _phase_lines(stages: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Seconds by stage and phase with all of them together, then the peak of each phase over the stages."""
    names = list(dict.fromkeys(name for stage in stages.values() for name in stage["seconds"]))
    out = ["", TIME, "", _line(["seconds", *names, "total"]), _line(["---"] * (len(names) + 2))]
    rows = {name: stage["seconds"] for name, stage in stages.items()}
    rows["all"] = {name: sum(row.get(name, 0.0) for row in rows.values()) for name in names}
    for label, row in rows.items():
        out.append(_line([label, *(f"{row[n]:.0f}" if n in row else "" for n in names), f"{sum(row.values()):.0f}"]))
    peaks: dict[str, float] = {}
    for stage in stages.values():
        for name, peak in stage["memory"].items():
            peaks[name] = max(peak, peaks.get(name, 0))
    if peaks:
        out += ["", "Peak memory: " + ", ".join(f"{name} {peak / 2**30:.1f} GiB" for name, peak in peaks.items())]
    return out


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

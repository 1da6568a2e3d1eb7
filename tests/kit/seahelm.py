"""What SEA-HELM writes, made by hand in both layouts, and a SEA-HELM of ours that asks and scores without it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.evals.seahelm.aggregate import PAPER7

V12, BEFORE = "v1.2", "before"
LAYOUTS = (V12, BEFORE)
TIME = "2026-06-01T10:00:00.000001"
GROUPS = {
    "translations": ("translation-en-xx", "translation-xx-en"),
    "thai_exam": ("thai_exam_ic", "thai_exam_onet"),
    "pragmatics": ("pragmatic-single", "pragmatic-pair"),
}
PHENOMENA = ("scalar_implicatures", "presuppositions")
Place = tuple[str, str, str]
"""(language, competency, task)."""


@dataclass(frozen=True)
class Made:
    """One task: whether each row was right, its labels (of choices), or that it failed."""

    right: tuple[bool, ...]
    labels: tuple[str, ...] = ()
    group: str | None = None
    metric: str = "normalized_accuracy"
    failed: bool = False
    rows: bool = True
    """Whether its rows were written."""

    @property
    def score(self) -> float:
        """By brute force: balanced accuracy with chance taken off, or the share that is right."""
        if not self.labels:
            return 100 * sum(self.right) / len(self.right)
        recalls = []
        for label in sorted(set(self.labels)):
            mine = [ok for ok, one in zip(self.right, self.labels, strict=True) if one == label]
            recalls.append(sum(mine) / len(mine))
        chance = 1 / len(recalls)
        return 100 * max((sum(recalls) / len(recalls) - chance) / (1 - chance), 0)


def choice(right: str, labels: str = "ABABABAB", group: str | None = None, **changes: Any) -> Made:
    """A choice: `10110100` says which rows were right."""
    return Made(tuple(sign == "1" for sign in right), tuple(labels), group, **changes)


def small() -> dict[Place, Made]:
    """A few tasks, a single one in Thai."""
    return {
        ("id", "nlu", "sentiment"): choice("11101101"),
        ("id", "nlu", "qa"): Made((True, False, True), (), None, "normalized_f1"),
        ("id", "safety", "toxicity"): choice("11111100"),
        ("id", "instruction-following", "if-eval"): Made((True, False, False), (), None, "overall_lang_normalized_acc"),
        ("th", "nlu", "sentiment"): choice("11110111"),
    }


def paper_tasks(seed: int = 0) -> dict[Place, Made]:
    """Every task of the paper's seven competencies, each with a score of its own."""
    found: dict[Place, Made] = {}
    for language, row in PAPER7.items():
        for competency, names in row.items():
            for name in names:
                for task in GROUPS.get(name, (name,)):
                    bits = hashlib.sha256(f"{seed}{language}{task}".encode()).digest()
                    right = "".join("1" if bits[k] > 80 else "0" for k in range(8))
                    group = name if name in GROUPS else None
                    if task.startswith("translation"):
                        made = Made(tuple(c == "1" for c in right), (), group, "normalized_metricx_wmt24_scores")
                    elif task == "if-eval":
                        made = Made((True, *(c == "1" for c in right)), (), None, "overall_lang_normalized_acc")
                    elif task == "qa":
                        made = Made(tuple(c == "1" for c in right), (), None, "normalized_f1")
                    else:
                        made = choice(right, group=group)
                    found[language, competency, task] = made
    return found


def write(
    root: Path,
    tasks: Mapping[Place, Made],
    layout: str = V12,
    model: str = "student",
    run: int = 0,
    time: str = TIME,
    totals: bool = True,
) -> Path:
    """A run's folders as SEA-HELM leaves them; its results file."""
    base = root / model / f"run_{run}"
    table: dict[str, Any] = {}
    for (language, competency, task), made in tasks.items():
        entry = table.setdefault(language, {}).setdefault(competency, {}).setdefault(task, {})
        entry |= {"inference_time_taken": [1.5], "is_cached": [False] if layout == V12 else False}
        entry |= _result(task, made, layout)
        folder = base / "inferences" / language / (made.group or task)
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(folder / f"{model}_{task}_{language}", made, layout)
    if totals:
        _add_totals(table, tasks)
    for name in ("results", "configs"):
        (base / name).mkdir(parents=True, exist_ok=True)
    config = "tasks: {}\nrun_env:\n  seahelm_git_hash: 6844e6c\n"
    (base / "configs" / f"{model}_run_config_{time}.yaml").write_text(config, encoding="utf-8")
    file = base / "results" / f"{model}_seahelm_results_{time}.json"
    file.write_text(json.dumps(table, indent=2), encoding="utf-8")
    return file


def _result(task: str, made: Made, layout: str) -> dict[str, Any]:
    if made.failed:
        return {made.metric: 0, "error": "Failed to run evaluation for task"}
    errors = {} if layout == V12 else {"errors": {}}
    if task.startswith("pragmatic-"):
        halves = {name: [sum(made.right[k::2]), len(made.right[k::2])] for k, name in enumerate(PHENOMENA)}
        return {"subcategories": halves, **errors}
    return {"accuracy": 12.5, made.metric: made.score, "null_count": 0, **errors}


def _write_rows(stem: Path, made: Made, layout: str) -> None:
    """Before v1.2 rows are written before they are scored, and again after; in v1.2 only after, beside the answers."""
    lines, answers = [], []
    for number, ok in enumerate(made.right):
        row: dict[str, Any] = {
            "conversations": [{"role": "user", "content": f"question {number}"}],
            "responses": [f"answer {number}"],
        }
        if made.labels:
            row["label"] = made.labels[number]
        if not made.failed:
            row["individual_scores"] = {made.metric: 100 * ok if "metricx" in made.metric else int(ok)}
        lines.append(json.dumps(row))
        answers.append(json.dumps({"responses": f"answer {number}", "errors": None}))
    if made.rows and not (made.failed and layout == V12):
        stem.with_name(f"{stem.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if made.rows and layout == V12:
        name = f"{stem.name}_turn1_batch_response.jsonl"
        stem.with_name(name).write_text("\n".join(answers) + "\n", encoding="utf-8")


def _add_totals(table: dict[str, Any], tasks: Mapping[Place, Made]) -> None:
    """As SEA-HELM's aggregation adds them: what failed counts as 0."""
    by_language = []
    for language, competencies in table.items():
        by_competency = []
        for competency, entries in competencies.items():
            here = {t: made for (l, c, t), made in tasks.items() if (l, c) == (language, competency)}
            units = dict(units_of(here))
            entries |= {name: value for name, value in units.items() if name in {m.group for m in here.values()}}
            if competency == "linguistic-diagnostics":
                entries |= {
                    "pragmatics": {"normalized_accuracy": units["pragmatics"]},
                    "lindsea": {"subcategories": {}},
                }
            entries["total"] = sum(units.values()) / len(units)
            by_competency.append(entries["total"])
        competencies["total"] = sum(by_competency) / len(by_competency)
        by_language.append(competencies["total"])
    table["total"] = sum(by_language) / len(by_language)


def units_of(tasks: Mapping[str, Made]) -> Iterator[tuple[str, float]]:
    """(unit, score) of the tasks of one competency."""
    for name in dict.fromkeys(made.group or task for task, made in tasks.items()):
        mine = [made for task, made in tasks.items() if (made.group or task) == name]
        if name == "pragmatics":
            shares = []
            for k in range(len(PHENOMENA)):
                rows = [ok for made in mine for ok in made.right[k::2]]
                shares.append(sum(rows) / len(rows))
            yield name, 100 * max((sum(shares) / 2 - 0.5) / 0.5, 0)
        else:
            yield name, sum(0.0 if made.failed else made.score for made in mine) / len(mine)


# ── a SEA-HELM of ours ───────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class OurSeaHelm:
    """Stands where `Checkout` does: asks short questions, scores by the first letter of an answer."""

    tasks: Mapping[tuple[str, str], int]
    """(language, task) -> rows."""
    commit: str = "6844e6c5cae439a413281df31271d388fcbad12f"
    prompt: str = "A?"
    broken: frozenset[str] = frozenset()
    """Tasks that it fails to score."""
    unreachable: frozenset[str] = frozenset()
    """Tasks whose data it does not reach."""
    calls: list[str] = field(default_factory=list)
    scored: list[str] = field(default_factory=list)
    stop_after: int | None = None
    """It is killed after so many tasks."""

    version = property(lambda self: self.commit[:7])
    remark = property(lambda self: f"SEA-HELM {self.version}")

    def call(self, command: str, spec: Mapping[str, Any], log: Path) -> Iterator[dict[str, Any]]:
        """As `bridge.py` answers."""
        self.calls.append(command)
        log.write_text("", encoding="utf-8")
        yield from getattr(self, f"_{command}")(spec)

    def _rows(self, key: tuple[str, str], spec: Mapping[str, Any]) -> int:
        return min(self.tasks[key], spec["limit"] or self.tasks[key])

    def _plan(self, spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for language, task in self.tasks:
            yield {
                "event": "cell", "language": language, "task": task, "competency": "nlu",
                "metric": "normalized_accuracy", "group": None, "data": "hub/data", "local": False, "max_tokens": 3,
                "judges": [], "unmet": None,
            }  # fmt: skip
        yield {"event": "packages", "versions": {"datasets": "4.7.0"}}

    def _asked(self, key: tuple[str, str], spec: Mapping[str, Any]) -> list[Any]:
        rows = self._rows(key, spec)
        return [[{"role": "user", "content": f"{self.prompt} {'/'.join(key)} {n}"}] for n in range(rows)]

    def _prompts(self, spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for key in map(tuple, spec["cells"]):
            place = {"language": key[0], "task": key[1]}
            if key[1] in self.unreachable:
                yield {"event": "failed", **place, "why": "ConnectionError: the hub cannot be reached"}
                continue
            asked = self._asked(key, spec)
            file = Path(spec["prompts"], key[0], f"{key[1]}.jsonl")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
            digest = hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
            yield {"event": "prompts", **place, "rows": len(asked), "sha256": digest}

    def _score(self, spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        (run,) = spec["runs"]
        kept = {(language, task) for language, task, _ in spec["kept"]}
        made: dict[Place, Made] = {}
        for language, task in self.tasks:
            file = Path(spec["answers"], language, f"{task}.json")
            found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"answers": None}
            if found["answers"] is None:
                continue
            right = tuple(answer["text"].startswith("A") for answer in found["answers"])
            labels = tuple("AB"[n % 2] for n in range(len(right)))
            one = Made(right, labels, failed=task in self.broken)
            made[language, "nlu", task] = one
            if (language, task) in kept:
                continue
            if self.stop_after is not None and len(self.scored) >= self.stop_after:
                raise KeyboardInterrupt
            self.scored.append(f"{run}/{language}/{task}")
            yield {"event": "scored", "language": language, "task": task, "result": _result(task, one, V12)}
        count = len(self.calls)
        file = write(Path(spec["output"]), made, V12, spec["model"], run, f"2026-06-01T10:00:00.{count:06}")
        yield {"event": "done", "results": str(file), "totals": None}


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────
def run(*line: str | Path) -> str:
    """What `dudi eval` prints. Raises the `DudiError` that it is refused with."""
    done = CliRunner().invoke(app, ["eval", *map(str, line)])
    if isinstance(done.exception, DudiError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output

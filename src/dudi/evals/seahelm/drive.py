"""A student's folder -> SEA-HELM's scores: prompts, answers, scoring, each kept, so that a second call repeats nothing.

OUT/<hash of the weights>/about.json         what was asked with what; other settings are refused there
                          prompts/           SEA-HELM's prompts, and cells.jsonl
                          answers/           one file for each run, language and task
                          scored/            what SEA-HELM said of each
                          run_<N>/           SEA-HELM's own folders
                          per_run/, paper7/  the scores, as `dudi compare` reads them
                          logs/              what SEA-HELM printed
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dudi.errors import DudiError
from dudi.evals.seahelm.aggregate import Expected
from dudi.evals.seahelm.answers import Answered, Asker, ask, file_of, read_answered
from dudi.evals.seahelm.checkout import Checkout
from dudi.evals.seahelm.collect import Results, read_results
from dudi.evals.seahelm.prompts import Cell, Plan, read_plan, spec, with_prompts
from dudi.evals.seahelm.write import Scored
from dudi.files import sha256, write_text
from dudi.lock import beside_lock
from dudi.records import AskedModel, Decoding
from dudi.strict import read_one, shown

SET = "seahelm"
"""What is asked where no --tasks are given: the set that the paper's scores are of."""
ABOUT = "about.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """What SEA-HELM said of a task, and the digest of the answers that it scored."""

    answers_sha256: str
    result: dict[str, Any]
    failed: bool


@dataclass(frozen=True)
class Done:
    """A run that was scored: its tasks as `language/task`, the digests of their answers, and the results file."""

    cells: list[str]
    answers: list[str]
    results: str


@dataclass(frozen=True)
class Drive:
    """One student, one checkout, the tasks and runs that are wanted of it."""

    model: AskedModel
    checkout: Checkout
    names: tuple[str, ...]
    runs: tuple[int, ...]
    limit: int | None
    decoding: Decoding
    versions: Mapping[str, str]
    output: Path
    say: Callable[[str], None]

    @property
    def key(self) -> str:
        """What answers are kept under: weights, not a folder's name."""
        return self.model.weights_sha256[:16]

    @property
    def folder(self) -> Path:
        """Where everything of this student lies."""
        return self.output / self.key

    def run(
        self, asker: Callable[[], Asker], overwrite: bool, progress: Callable[[int, int], None] | None = None
    ) -> Scored:
        """Ask what was not asked, have scored what was not scored, and read it. The folder is locked."""
        self._claim(overwrite)
        plan = read_plan(self.checkout, self.names, self._log("plan"))
        plan = with_prompts(plan, self.checkout, self.names, self.limit, self.folder / "prompts", self.say)
        answers = self.folder / "answers"
        ask(plan.cells, self.runs, self.folder / "prompts", answers, asker, self.say, _Done(self, plan, progress))
        results = {run: self._score(run, plan) for run in self.runs}
        return self._scored(plan, results)

    def _claim(self, overwrite: bool) -> None:
        """The folder is this student's with these settings, or is emptied if `overwrite`. Raises `DudiError`."""
        record = {
            "model": {key: value for key, value in asdict(self.model).items() if key != "path"},
            "checkout": self.checkout.version,
            "limit": self.limit,
            "decoding": {key: value for key, value in asdict(self.decoding).items() if key != "seeds"},
            "versions": dict(self.versions),
        }
        record = json.loads(json.dumps(record))
        file = self.folder / ABOUT
        if overwrite and file.is_file():
            for one in beside_lock(self.folder):
                shutil.rmtree(one) if one.is_dir() else one.unlink()
        if beside_lock(self.folder) and not file.is_file():
            raise DudiError(f"output folder {str(self.folder)!r} holds something else; choose another with --output")
        if file.is_file():
            _compare(record, file)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"path": self.model.path, **record}, indent=1, ensure_ascii=False) + "\n")

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _score(self, run: int, plan: Plan) -> Results:
        """SEA-HELM's results of a run; tasks that it has scored are not scored again."""
        answered = {cell.key: read_answered(self.folder / "answers", run, cell) for cell in plan.cells}
        wanted = [cell for cell in plan.cells if (found := answered[cell.key]) and found.answers is not None]
        kept = self._kept(run, wanted)
        ending = sorted("/".join(cell.key) for cell in wanted), self._digests(run, wanted)
        last = _found(Done, self._done_file(run))
        scorable = [cell for cell in wanted if cell.unmet is None]
        if last is not None and (last.cells, last.answers) == ending and len(kept) == len(scorable):
            file = Path(self.folder, last.results)
            if file.is_file():
                self.say(f"run {run}: scored already")
                return self._read(run, file)
        if not scorable:
            raise DudiError(f"run {run}: nothing to score: {_nothing(plan, answered)}")
        self.say(f"run {run}: SEA-HELM scores {len(scorable)} tasks, {len(kept)} of them are scored already")
        results = self._call(run, kept)
        _write(self._done_file(run), Done(*ending, str(results.relative_to(self.folder))))
        return self._read(run, results)

    def _call(self, run: int, kept: Mapping[tuple[str, str], Any]) -> Path:
        told = {
            **spec(self.names, self.limit, self.output.absolute(), self.key, run),
            "answers": str((self.folder / "answers" / f"run_{run}").absolute()),
            "kept": [[*key, result] for key, result in kept.items()],
        }
        results = None
        for event in self.checkout.call("score", told, self._log(f"score-{run}")):
            if event["event"] == "scored":
                self._keep(run, event)
            elif event["event"] == "done":
                results = event["results"]
                if event["totals"]:
                    self.say(f"run {run}: SEA-HELM's own totals failed ({event['totals']}); the tasks are scored")
        if results is None or not Path(results).is_file():
            raise DudiError(f"run {run}: SEA-HELM wrote no results: see {self._log(f'score-{run}')}")
        return Path(results)

    def _keep(self, run: int, event: Mapping[str, Any]) -> None:
        language, task, result = event["language"], event["task"], event["result"]
        self.say(f"run {run}, {language}, {task}: " + ("failed" if "error" in result else "scored"))
        answers = sha256(self.folder / "answers" / f"run_{run}" / language / f"{task}.json")
        _write(self._kept_file(run, language, task), Kept(answers, result, "error" in result))

    def _read(self, run: int, file: Path) -> Results:
        """The results; a 0 that proves to be real, though SEA-HELM marks it as an error, is kept with the others."""
        found = read_results(file)
        for task in found.tasks:
            kept = _found(Kept, self._kept_file(run, *task.key))
            if task.missing is None and kept is not None and kept.failed:
                _write(self._kept_file(run, *task.key), replace(kept, failed=False))
        return found

    def _kept_file(self, run: int, language: str, task: str) -> Path:
        return self.folder / "scored" / f"run_{run}" / language / f"{task}.json"

    def _done_file(self, run: int) -> Path:
        return self.folder / "scored" / f"run_{run}.json"

    def _kept(self, run: int, cells: Sequence[Cell]) -> dict[tuple[str, str], Any]:
        """What was scored of these very answers; what failed is tried again."""
        found = {}
        for cell in cells:
            kept = None if cell.unmet is not None else _found(Kept, self._kept_file(run, *cell.key))
            if kept is None or kept.failed:
                continue
            if kept.answers_sha256 == sha256(file_of(self.folder / "answers", run, cell)):
                found[cell.key] = kept.result
        return found

    def _digests(self, run: int, cells: Sequence[Cell]) -> list[str]:
        return sorted(sha256(file_of(self.folder / "answers", run, cell)) for cell in cells)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────
    def _scored(self, plan: Plan, results: Mapping[int, Results]) -> Scored:
        folder = self.folder / "answers"
        found = {(run, *cell.key): read_answered(folder, run, cell) for run in self.runs for cell in plan.cells}
        first = self.runs[0]
        return Scored(
            model=self.model,
            commit=self.checkout.commit,
            decoding=self.decoding,
            versions={**self.versions, **{f"seahelm: {name}": version for name, version in plan.versions.items()}},
            runs=results,
            expected=[
                Expected(
                    cell.language,
                    cell.competency,
                    cell.task,
                    cell.group,
                    _why(cell, found[first, *cell.key]),
                    cell.rows,
                    cell.prompts_sha256,
                )
                for cell in plan.cells
            ],
            answers={key: one.answers for key, one in found.items() if one is not None and one.answers is not None},
        )


def _found(kind: type[T], file: Path) -> T | None:
    """A record that was written here; None where there is none, or one that is damaged: its work is done again."""
    try:
        return read_one(kind, file) if file.is_file() else None
    except DudiError:
        return None


def _write(file: Path, record: Kept | Done) -> None:
    write_text(file, json.dumps(asdict(record), ensure_ascii=False) + "\n")


class _Done:
    """Adds up answers over runs, those that are there already among them."""

    def __init__(self, drive: Drive, plan: Plan, progress: Callable[[int, int], None] | None) -> None:
        asked = [(run, cell) for run in drive.runs for cell in plan.cells]
        self.total = sum(cell.rows for _, cell in asked)
        there = (cell.rows for run, cell in asked if read_answered(drive.folder / "answers", run, cell) is not None)
        self.done, self.progress = sum(there), progress

    def __call__(self, number: int) -> None:
        self.done += number
        if self.progress:
            self.progress(self.done, self.total)


def _why(cell: Cell, answered: Answered | None) -> str | None:
    """Why a cell has no score, where that is known before SEA-HELM scores."""
    if cell.failed is not None:
        return cell.failed
    if answered is not None and answered.refused is not None:
        return answered.refused
    if cell.unmet is not None:
        return cell.unmet
    return "SEA-HELM's configuration names no max_tokens" if cell.max_tokens is None else None


def _nothing(plan: Plan, answered: Mapping[tuple[str, str], Answered | None]) -> str:
    return next((why for cell in plan.cells if (why := _why(cell, answered[cell.key]))), "no answers")


def _compare(record: Mapping[str, Any], file: Path) -> None:
    there = read_one(dict[str, Any], file)
    for table, mine in record.items():
        theirs = there.get(table)
        fields = theirs if isinstance(theirs, dict) else {}
        pairs = [(f"{table}.{key}", mine[key], fields.get(key)) for key in mine] if isinstance(mine, dict) else []
        for key, ours, other in pairs or [(table, mine, theirs)]:
            if ours != other:
                raise DudiError(
                    f"output folder {str(file.parent)!r} holds another evaluation of these weights: {key} is"
                    f" {shown(other)} there, and {shown(ours)} here; choose another folder with --output, or replace it"
                    " with --overwrite"
                )

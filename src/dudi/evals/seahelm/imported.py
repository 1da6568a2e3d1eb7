"""Results that somebody else's SEA-HELM wrote: whose they are, whether they fit together, where they go. No torch."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from dudi.errors import DudiError
from dudi.evals.seahelm.aggregate import units
from dudi.evals.seahelm.collect import NAME, Results
from dudi.evals.seahelm.write import WRITTEN
from dudi.files import sha256
from dudi.lock import beside_lock
from dudi.records import About, AskedModel
from dudi.strict import read_one, read_text


def model_of(files: Sequence[Path]) -> tuple[AskedModel, str | None]:
    """Whose results these are, and SEA-HELM's commit, as far as the files say. Raises `DudiError` for two models."""
    names = {match["model"] if (match := NAME.match(file.name)) else file.stem for file in files}
    if len(names) > 1:
        raise DudiError(f"--import: results of {len(names)} models ({', '.join(sorted(names))}); give runs of one")
    commits = {_commit(file) for file in files}
    if len(commits) > 1:
        raise DudiError(f"--import: runs of different versions of SEA-HELM: {', '.join(map(str, commits))}")
    digest = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    return AskedModel(names.pop(), f"unknown; results {digest}", "unknown", None), commits.pop()


def _commit(file: Path) -> str | None:
    """As the configuration of the same run says it."""
    match = NAME.match(file.name)
    if match is None:
        return None
    config = file.parent.parent / "configs" / f"{match['model']}_run_config_{match['time']}.yaml"
    found = re.search(r"seahelm_git_hash: (\S+)", read_text(config)) if config.is_file() else None
    return found[1].rpartition("-g")[2] if found else None


def check_runs(runs: Sequence[Results]) -> None:
    """Raises `DudiError` where totals do not follow from tasks, or runs were asked other rows of a task."""
    first: dict[tuple[str, str], tuple[Path, list[str]]] = {}
    for run in runs:
        units(run)
        for task in run.tasks:
            asked = [row.prompt for row in task.rows]
            file, others = first.setdefault(task.key, (run.file, asked))
            if asked and others and asked != others:
                raise DudiError(
                    f"--import: {task.task} ({task.language}): {run.file} has other rows ({len(asked)}) than {file}"
                    f" ({len(others)}); give runs that were asked the same"
                )


def clear(folder: Path, asked: AskedModel, overwrite: bool) -> None:
    """Raises `DudiError` where a folder holds something else than an import of these results; if `overwrite`, an import
    of others is removed."""
    there = [one.name for one in beside_lock(folder)]
    record = folder / WRITTEN[0] / "eval.json"
    if folder.exists() and (not folder.is_dir() or (there and not record.is_file()) or set(there) - set(WRITTEN)):
        raise DudiError(f"output folder {str(folder)!r} holds something else; choose another with --output")
    if not there:
        return
    if not overwrite and read_one(About, record).model.weights_sha256 != asked.weights_sha256:
        raise DudiError(
            f"output folder {str(folder)!r} holds an import of other results; choose another with --output, or replace"
            " it with --overwrite"
        )
    for name in there:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)

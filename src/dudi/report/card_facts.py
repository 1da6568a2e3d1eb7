"""What a model card says of one stage of a run, read from the run's files: where its models and rows came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from dudi.errors import DudiError
from dudi.recipe.stages import Train, folder_name, plan
from dudi.report.evals import Evaluation
from dudi.report.runs import Record, Run
from dudi.strict import read_one

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Known(Record):
    """A model of environment.json."""

    path: str
    commit: str | None = None
    files: dict[str, Any] = Field(default={})


class Models(Record):
    """environment.json, as far as it tells of models."""

    models: dict[str, Known] = Field(default={})


class Origin(Record):
    """Where rows came from: a file, a folder or a data set of the hub, and of that the commit."""

    source: str | None = None
    revision: str | None = None

    @property
    def hub(self) -> str | None:
        """The data's name on the hub, if it came from there."""
        return self.source if _COMMIT.fullmatch(self.revision or "") else None


class Manifest(Origin):
    """data/manifest.json, as far as it tells where rows came from."""

    sources: tuple[Origin, ...] = ()

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Each of several sources, or the only one."""
        return self.sources or (self,)


def hub_name(known: Known) -> str | None:
    """What a model is called on the hub, if it came from there, also by a folder of the hub's cache."""
    for part in Path(known.path).parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return known.path if known.commit is not None or not known.files else None


def evaluator(evaluation: Evaluation) -> str:
    """Who asked and scored, with versions."""
    versions = evaluation.about.versions
    ours = f"dudi {versions.get('dudi', '?')}"
    return f"lm-evaluation-harness {versions['lm_eval']} within {ours}" if "lm_eval" in versions else ours


def last_part(path: str) -> str:
    """A path without what it says of a machine: its last part, with the stage's folder of a result."""
    parts = Path(path).parts
    return "/".join(parts[-2:]) if parts[-1:] == ("model",) else (parts or (path,))[-1]


class Facts:
    """What a card says of one stage of a run. Raises `DudiError` where the run has no such training."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.recipe, self.stages = run, run.recipe, plan(run.recipe)
        found = [one for one in self.stages if isinstance(one, Train) and self.folder(one.name) == stage]
        if not found:
            raise DudiError(f"{run.folder / stage}: the recipe of that run has no such training")
        self.stage, self.last = found[0], found[0] is self.stages[-1]
        self.known = read_one(Models, run.folder / "environment.json").models
        file = run.folder / "data" / "manifest.json"
        self.manifest = read_one(Manifest, file) if file.is_file() else Manifest(source=self.recipe.data.source)
        self.logged = next((one for one in run.stages if one.name == self.stage.name), None)
        self.languages = [l for l, one in run.lengths.items() if one.rows]
        self.title = self.recipe.name if self.last else f"{self.recipe.name}, {self.stage.name}"

    def folder(self, name: str) -> str:
        """A stage's folder."""
        return folder_name(self.stages, name)

    def model(self, key: str, path: str) -> tuple[str | None, str]:
        """Name on the hub, if any, and how the text calls a model of the recipe."""
        known = self.known.get(key, Known(path=path, files={"": 0}))
        name = hub_name(known)
        if name is None:
            return None, f"`{last_part(path)}` (a folder)"
        commit = f", commit `{known.commit}`" if known.commit else ""
        return name, f"[{name}](https://huggingface.co/{name}){commit}"

    @property
    def datasets(self) -> list[str]:
        """The names of data on the hub."""
        return [one.hub for one in self.manifest.origins if one.hub is not None]

"""What `dudi eval` is told beside a model: which evaluator, and the options of each. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dudi.errors import DudiError


class Evaluator(StrEnum):
    """Who asks and scores."""

    DUDI = "dudi"
    SEAHELM = "seahelm"


With = Annotated[Evaluator, typer.Option("--with", help="dudi: a benchmark folder. seahelm: SEA-HELM, at --checkout.")]
Checkout = Annotated[Path | None, typer.Option(metavar="DIR", help="seahelm: a git checkout of SEA-HELM.")]
Python = Annotated[str | None, typer.Option(metavar="PATH", help="seahelm: the Python of SEA-HELM's environment.")]
Tasks = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="seahelm: a set, task or group; repeatable; default seahelm.")
]
Runs = Annotated[int | None, typer.Option(min=1, help="seahelm: how often everything is asked; needs a temperature.")]
Server = Annotated[str | None, typer.Option(metavar="URL", help="seahelm: an OpenAI-compatible server that answers.")]
Prepare = Annotated[bool, typer.Option("--prepare", help="seahelm: say what is missing for it, and how to get it.")]
Import = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="RESULTS.json", help="Read what SEA-HELM wrote elsewhere; once for each run."),
]


@dataclass(frozen=True)
class SeaHelm:
    """Options of `--with seahelm` alone."""

    checkout: Path | None = None
    python: str | None = None
    tasks: tuple[str, ...] = ()
    runs: int | None = None
    server: str | None = None
    prepare: bool = False
    import_: tuple[str, ...] = ()

    def refuse_any(self, where: str) -> None:
        """Raises `DudiError` where one was given to another evaluator: it would be ignored in silence."""
        refuse(where, **{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Shared:
    """Options of every evaluator that asks a model."""

    output: str | None = None
    temperature: float = 0.0
    batch: int = 64
    limit: int | None = None
    overwrite: bool = False
    template: str | None = None
    chat: tuple[str, ...] = ()
    attention: str | None = None
    engine: str = "local"


def refuse(where: str, **given: object) -> None:
    """Raises `DudiError` for the first option that was given to an evaluator that does not have it."""
    for name, value in given.items():
        if value:
            raise DudiError(f"--{name.strip('_')} is no option of {where}; see dudi eval --help")

"""What `dudi eval` is told beside a model: which evaluator, and the options of each. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from dudi.errors import DudiError


class Evaluator(StrEnum):
    """Who asks and scores."""

    DUDI = "dudi"
    LM_EVAL = "lm-eval"


With = Annotated[
    Evaluator, typer.Option("--with", help="dudi: a benchmark folder. lm-eval: choices by likelihood, in the harness.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="lm-eval: belebele, xcopa, xnli, global_mmlu, include; with commas, or repeatable."
    ),
]


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

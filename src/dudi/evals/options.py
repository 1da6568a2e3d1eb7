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
    LM_EVAL = "lm-eval"


Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A model folder, such as RUN/2-dudi/model.", show_default=False)
]
Benchmark = Annotated[str | None, typer.Option(metavar="FOLDER", help="By default the lab's benchmark.")]
Output = Annotated[str | None, typer.Option(help="Where to write; by default MODEL.eval/<benchmark>.")]
Seed = Annotated[list[int] | None, typer.Option(help="Decoding seed; repeatable. Needs a temperature.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy decoding.")]
Batch = Annotated[int, typer.Option(help="Items that are answered together.")]
Limit = Annotated[int | None, typer.Option(help="At most so many items of each task and language.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another evaluation in the folder.")]
Template = Annotated[str | None, typer.Option(help="A Jinja file: chat template for a model without.")]
Chat = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Passed to the chat template, over the model's own; repeatable."),
]
Attention = Annotated[
    str | None, typer.Option(help="eager, sdpa or flash_attention_2; by default what transformers chooses.")
]
Engine = Annotated[str, typer.Option(help="What decodes, as rollouts.engine of a recipe.")]
With = Annotated[
    Evaluator,
    typer.Option(
        "--with",
        help="dudi: a benchmark folder. seahelm: SEA-HELM, at --checkout. lm-eval: choices by likelihood, its harness.",
    ),
]
Checkout = Annotated[Path | None, typer.Option(metavar="DIR", help="seahelm: a git checkout of SEA-HELM.")]
Python = Annotated[str | None, typer.Option(metavar="PATH", help="seahelm: the Python of SEA-HELM's environment.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="seahelm: a set, task or group, by default seahelm. lm-eval: belebele, xcopa, xnli, global_mmlu, include."
        " Repeatable, or with commas.",
    ),
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

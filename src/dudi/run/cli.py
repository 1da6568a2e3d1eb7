"""`dudi card`: what is done with a finished run's models. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    path: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run's folder, or a model in one.")],
) -> None:
    """Write the model card (README.md) of each finished stage again, with the evaluations of its weights in the run."""
    from dudi.run.cards import write_cards

    for written in write_cards(path):
        scores = ", ".join(written.evaluations) or "no evaluation"
        typer.echo(f"card: {written.file} ({scores})")
        for name in written.left_out:
            typer.echo(f"  left out: {name} is an evaluation of other weights")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder, such as RUN/2-dudi/model.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
) -> None:
    """Copy a model folder with its weights in another dtype."""
    from dudi.models.export import export as export_model

    typer.echo(f"model folder: {export_model(model, output, dtype)}")

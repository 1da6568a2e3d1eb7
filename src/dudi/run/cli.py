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


def push(
    path: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, for its result; or any model folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="A private repository.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it, only say what would be.")] = False,
) -> None:
    """Show what of a model would go to the hub: files, sizes, the card. With --yes, upload it."""
    from dudi.run.push import prepare, send

    upload = prepare(path, repo)
    typer.echo(f"from {upload.folder} to {repo}{' (private)' if private else ''}:")
    for name, size in upload.files:
        typer.echo(f"{size:15,} bytes  {name}")
    typer.echo(f"{sum(size for _, size in upload.files):15,} bytes in all")
    for name in upload.left_out:
        typer.echo(f"  left out: {name}")
    if not yes:
        typer.echo(f"its card:\n\n{upload.card}")
    if not upload.licensed:
        typer.echo("the card names no license: add `license: ...` to the head of README.md")
    typer.echo(f"uploaded: {send(upload, private)}" if yes else "nothing was uploaded: --yes does")

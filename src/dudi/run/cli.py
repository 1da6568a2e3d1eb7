"""`dudi card`, `export`, `push` and `data push`: what is done with a run's models and rows. Nothing heavy is imported
until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dudi.run.push import Upload

Private = Annotated[bool, typer.Option("--private", help="A private repository.")]
Yes = Annotated[bool, typer.Option("--yes", help="Upload; without it, only say what would be.")]


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
    merge: Annotated[
        bool, typer.Option("--merge", help="MODEL is an adapter, such as RUN/2-dudi/adapter: merge it into its base.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="In place of the base that the adapter names.")
    ] = None,
) -> None:
    """Copy a model folder with its weights in another dtype; or make one of an adapter and its base."""
    from dudi.models.export import export as export_model
    from dudi.run.machine import quiet_library

    quiet_library()
    typer.echo(f"model folder: {export_model(model, output, dtype, merge, base)}")


def push(
    path: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run, for its result; or any model folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The model's name on the hub.")],
    private: Private = False,
    yes: Yes = False,
) -> None:
    """Show what of a model would go to the hub: files, sizes, the card. With --yes, upload it."""
    from dudi.run.push import prepare, send

    upload = prepare(path, repo)
    _show(upload, private, yes)
    if not upload.licensed:
        typer.echo("the card names no license: add `license: ...` to the head of README.md")
    typer.echo(f"uploaded: {send(upload, private)}" if yes else NOT_SENT)


def push_data(
    path: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="A run, or a folder of `dudi data prepare`.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The data set's name on the hub.")],
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="What the rows are under, by the hub's name, such as cc-by-4.0.")
    ] = None,
    private: Private = False,
    yes: Yes = False,
) -> None:
    """Show what of the training rows would go to the hub: files, sizes, the card. With --yes, upload it."""
    from dudi.run.push import send
    from dudi.run.push_data import check_sources, prepare

    upload = prepare(path, repo, license)
    _show(upload, private, yes)
    if not yes:
        typer.echo(NOT_SENT)
        return
    for line in check_sources(upload, str(license)):
        typer.echo(line)
    typer.echo(f"uploaded: {send(upload, private)}")


NOT_SENT = "nothing was uploaded: --yes does"


def _show(upload: Upload, private: bool, yes: bool) -> None:
    """What would go, with the card where nothing goes yet."""
    typer.echo(f"from {upload.folder} to {upload.repo}{' (private)' if private else ''}:")
    for name, size in upload.files:
        typer.echo(f"{size:15,} bytes  {name}")
    typer.echo(f"{sum(size for _, size in upload.files):15,} bytes in all")
    for name in upload.left_out:
        typer.echo(f"  left out: {name}")
    if not yes:
        typer.echo(f"its card:\n\n{upload.card}")

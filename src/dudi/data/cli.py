"""`dudi data`: check any data, prepare a sample of it. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dudi.errors import DudiError

if TYPE_CHECKING:
    from dudi.data.report import DataReport
    from dudi.example import Example
    from dudi.recipe.read import Data

app = typer.Typer(help="Check training data, or prepare a sample of it.", no_args_is_help=True)

_Source = Annotated[str, typer.Argument(help="A hub name, a folder, or one .jsonl or .parquet file.")]
_Format = Annotated[str, typer.Option("--format", help="sea_instruct, or chat (messages, or prompt and completion).")]
_Language = Annotated[str | None, typer.Option(help="Chat: the language of rows without a language column.")]
_Languages = Annotated[str | None, typer.Option(help="Only these languages, such as id,vi,th.")]
_Revision = Annotated[str | None, typer.Option(help="Hub: branch, tag or commit.")]
_Split = Annotated[str, typer.Option(help="Which split, where the files name splits.")]
_Quality = Annotated[bool, typer.Option("--quality-filter/--no-quality-filter", help="SEA-Instruct: good rows only.")]


@app.command("check")
def check_command(
    source: _Source,
    format: _Format = "chat",
    language: _Language = None,
    languages: _Languages = None,
    revision: _Revision = None,
    split: _Split = "train",
    quality_filter: _Quality = True,
    tokenizer: Annotated[
        str | None, typer.Option(help="A model folder or hub name: count rows with its special tokens in their text.")
    ] = None,
) -> None:
    """Read every row and say, by language, what could be trained on and what is wrong with the rest.

    Exit status 2 if chat data has broken rows; SEA-Instruct is known to have some, and they are left out in training.
    """
    from dudi.data.load import check

    data = _data(source, format, language, languages, revision=revision, split=split, quality_filter=quality_filter)
    report = check(data, special=None if tokenizer is None else _special(tokenizer))
    _print(report)
    if data.format == "chat":
        if report.broken:
            more = f" ({report.broken} broken rows in all)" if report.broken > 1 else ""
            raise DudiError(f"{report.first_fault}{more}")
        if not any(counts.kept for counts in report.languages.values()):
            raise DudiError(f"{source}: no row that could be trained on")


@app.command("prepare")
def prepare_command(
    source: _Source,
    out: Annotated[Path, typer.Option(help="A new folder for train.jsonl, eval.jsonl, manifest.json, report.json.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Rows a language; without it every good row.")] = None,
    eval_rows: Annotated[int, typer.Option("--eval", min=0, help="Rows a language set aside for evaluation.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draw.")] = 0,
    format: _Format = "chat",
    language: _Language = None,
    languages: _Languages = None,
    revision: _Revision = None,
    split: _Split = "train",
    quality_filter: _Quality = True,
    bad_rows: Annotated[
        str | None, typer.Option(help="skip or error; by default error for chat, skip for sea_instruct.")
    ] = None,
) -> None:
    """Write a sample as chat JSONL, with a manifest from which it can be made again and checked."""
    from dudi.data.load import load_rows, write_rows
    from dudi.data.rows import refuse_occupied

    refuse_occupied(out)  # before hours of reading
    data = _data(
        source,
        format,
        language,
        languages,
        revision=revision,
        split=split,
        quality_filter=quality_filter,
        rows_per_language=rows,
        eval_rows_per_language=eval_rows,
        bad_rows=bad_rows,
    )
    prepared = load_rows(data, seed)
    write_rows(prepared, out)
    _print(prepared.report)
    typer.echo(f"{out}: {len(prepared.train)} training rows, {len(prepared.eval)} evaluation rows")


def _special(name: str) -> Callable[[Example], str | None]:
    from dudi.models.load import load_tokenizer
    from dudi.recipe.read import Models
    from dudi.text.special_tokens import Specials

    return Specials(load_tokenizer(name, "--tokenizer", Models(student=name))).in_row


def _data(source: str, format: str, language: str | None, languages: str | None, **values: Any) -> Data:
    from pydantic import ValidationError

    from dudi.recipe.read import Data

    codes = tuple(code.strip() for code in (languages or "").split(",") if code.strip())
    try:
        return Data.model_validate(
            {"source": source, "format": format, "language": language, "languages": codes, **values}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first.get("ctx", {}).get("error", first["msg"]))
        option = str(first["loc"][0]).replace("_", "-")
        raise DudiError(f"--{option}: {message}, found {str(first['input'])[:80]!r}") from None


def _print(report: DataReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dudi.data.report import COLUMNS

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "language" else "right", no_wrap=True)
    for row in report.table():
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a log or a pipe has no edge
    console.print(table)
    faults = [fault for counts in report.languages.values() for fault in counts.faults]
    for line in (*report.details(), *faults, *(f"note: {note}" for note in report.notes)):
        console.print(Text(line), soft_wrap=True)

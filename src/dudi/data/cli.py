"""`dudi data`: check any data, prepare a sample of it. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dudi.errors import DudiError
from dudi.signals import Mode

if TYPE_CHECKING:
    from dudi.data.report import DataReport
    from dudi.example import Example
    from dudi.recipe.schema import Data
    from dudi.text.trial import Trial

app = typer.Typer(help="Check training data, or prepare a sample of it.", no_args_is_help=True)

_Source = Annotated[
    str, typer.Argument(help="A hub name, a folder, or one file: JSON lines, JSON, Parquet, Arrow, CSV.")
]
_Sources = Annotated[list[str], typer.Argument(help="The same, or several that are trained on together.")]
_Format = Annotated[
    str,
    typer.Option(
        "--format", help="sea_instruct, or chat: each row as it looks; or one of the formats of docs/data.md."
    ),
]
_Columns = Annotated[
    str, typer.Option(help="What columns are called: prompt=question,completion=answer,language=lang.")
]
_Ignore = Annotated[str, typer.Option(help="Parts of rows knowingly not read, such as reasoning_content,name,tools.")]
_Language = Annotated[str | None, typer.Option(help="The language of every row, whatever the data says.")]
_Languages = Annotated[str | None, typer.Option(help="Only these languages, such as id,vi,th.")]
_Revision = Annotated[str | None, typer.Option(help="Hub: branch, tag or commit.")]
_Split = Annotated[str, typer.Option(help="Which split, where the files name splits.")]
_Quality = Annotated[bool, typer.Option("--quality-filter/--no-quality-filter", help="SEA-Instruct: good rows only.")]


@app.command("check")
def check_command(
    source: _Sources,
    format: _Format = "chat",
    columns: _Columns = "",
    ignore: _Ignore = "",
    language: _Language = None,
    languages: _Languages = None,
    revision: _Revision = None,
    split: _Split = "train",
    quality_filter: _Quality = True,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="A model folder or hub name: try each row through its chat template, and count tokens."),
    ] = None,
    template: Annotated[str | None, typer.Option(help="With --tokenizer: a Jinja file in place of its own.")] = None,
    chat: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Passed to the chat template; repeatable.")
    ] = None,
    merge_system: Annotated[
        bool, typer.Option("--merge-system", help="As chat.merge_system: for templates that refuse a system turn.")
    ] = False,
    mode: Annotated[Mode, typer.Option(help="With --tokenizer: the verbalizer mode of p_z and z.")] = Mode.CROSSLINGUAL,
    template_folder: Annotated[
        str | None, typer.Option(help="With --tokenizer: as data.template_folder, the verbalizer's templates.")
    ] = None,
) -> None:
    """Read every row and say, by language, what could be trained on and what is wrong with the rest.

    Exit status 2 if there are broken rows, or rows that the chat template or the tokenizer refuses; SEA-Instruct is
    known to have some, and they are left out in training.
    """
    from dudi.data.formats import SEA_INSTRUCT
    from dudi.data.load import check

    values = {"columns": _pairs(columns), "ignore": _listed(ignore), "revision": revision, "split": split}
    data = _data(source, format, language, languages, **values, quality_filter=quality_filter)
    given = template is not None or chat or merge_system or mode is not Mode.CROSSLINGUAL or template_folder is not None
    if tokenizer is None and given:
        raise DudiError(
            "--template, --chat, --merge-system, --mode and --template-folder: give the --tokenizer that they go with"
        )
    with _as_options():
        special, trial = (None, None) if tokenizer is None else _reader(tokenizer, template, chat or (), merge_system)
        if trial is not None:
            _verbalize(trial, mode, data.languages, template_folder)
        report = check(data, special=special, look=None if trial is None else trial.add)
    _print(report, () if template_folder is not None else _strange(report, data.languages))
    if trial is not None:
        _print_trial(trial)
    if data.format == SEA_INSTRUCT:
        return
    with _as_options():
        if report.broken:
            more = f" ({report.broken} broken rows in all)" if report.broken > 1 else ""
            raise DudiError(f"{report.first_fault}{more}; mend them, or train with bad_rows = 'skip' in [data]")
        if not any(counts.kept for counts in report.languages.values()):
            raise DudiError(f"{', '.join(source)}: no row that could be trained on")
    if trial is not None and trial.first is not None:
        refused = sum(reasons.total() for reasons in trial.refused.values())
        raise DudiError(f"{trial.first}" + (f" ({refused} refused rows in all)" if refused > 1 else ""))


@app.command("prepare")
def prepare_command(
    source: _Source,
    out: Annotated[Path, typer.Option(help="A new folder for train.jsonl, eval.jsonl, manifest.json, report.json.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Rows a language; without it every good row.")] = None,
    eval_rows: Annotated[int, typer.Option("--eval", min=0, help="Rows a language set aside for evaluation.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draw.")] = 0,
    format: _Format = "chat",
    columns: _Columns = "",
    ignore: _Ignore = "",
    language: _Language = None,
    languages: _Languages = None,
    revision: _Revision = None,
    split: _Split = "train",
    quality_filter: _Quality = True,
    bad_rows: Annotated[
        str | None, typer.Option(help="skip or error; by default skip for sea_instruct, error for others.")
    ] = None,
) -> None:
    """Write a sample as chat JSONL, with a manifest from which it can be made again and checked."""
    from dudi.data.load import load_rows, write_rows
    from dudi.data.rows import refuse_occupied

    refuse_occupied(out)  # before hours of reading
    data = _data(
        [source],
        format,
        language,
        languages,
        columns=_pairs(columns),
        ignore=_listed(ignore),
        revision=revision,
        split=split,
        quality_filter=quality_filter,
        rows_per_language=rows,
        eval_rows_per_language=eval_rows,
        bad_rows=bad_rows,
    )
    with _as_options():
        prepared = load_rows(data, seed)
    write_rows(prepared, out)
    _print(prepared.report)
    typer.echo(f"{out}: {len(prepared.train)} training rows, {len(prepared.eval)} evaluation rows")


def _reader(
    name: str, template: str | None, chat: Sequence[str], merge_system: bool
) -> tuple[Callable[[Example], str | None], Trial | None]:
    """What finds special tokens in a row, and what tries a row: nothing for a tokenizer without a chat template."""
    from dudi.models.load import load_tokenizer
    from dudi.recipe.schema import Models
    from dudi.text.chat import Chat
    from dudi.text.rendering import read_template_file
    from dudi.text.special_tokens import Specials
    from dudi.text.template import keywords
    from dudi.text.trial import Trial

    tokenizer = load_tokenizer(name, "--tokenizer", Models(student=name))
    try:
        text = tokenizer.chat_template if template is None else read_template_file(Path(template).expanduser())
    except (OSError, ValueError):
        raise DudiError(f"--template: expected a readable file, found {template!r}") from None
    if text is None:
        typer.echo(f"note: {name} has no chat template: to try the rows through one, give --template FILE")
        return Specials(tokenizer).in_row, None
    made = Chat(tokenizer, text, keywords(chat), merge_system=merge_system)
    return made.special_text, Trial(made)


def _verbalize(trial: Trial, mode: Mode, languages: Sequence[str], folder: str | None) -> None:
    """Have p_z and z measured: among the languages asked for, or all that have a template."""
    from dudi.signals import Response, View
    from dudi.text.verbalizer import Verbalizer

    if mode is Mode.NONE:
        return
    trial.view = View(Response.Y_TILDE, mode)
    trial.verbalizer = Verbalizer(languages or [*Verbalizer((), folder=folder).templates], folder=folder)


def _strange(report: DataReport, named: Sequence[str]) -> list[str]:
    """A note on languages of rows that are not among the eight, nor named by the user."""
    from dudi.data.chat import NO_LANGUAGE
    from dudi.data.report import counted_rows
    from dudi.languages import LANGUAGES

    found = {l: one.read for l, one in report.languages.items() if l not in (*LANGUAGES, *named, NO_LANGUAGE)}
    if not found:
        return []
    rows = ", ".join(f"{l} ({counted_rows(n)})" for l, n in found.items())
    return [
        f"no template is shipped for {rows}: a misspelt language? --languages names those that you mean, and leaves out"
        " the others, as `languages` in a recipe does"
    ]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in _listed(text)]
    if any(not (ours.strip() and name.strip()) for ours, _, name in pairs):
        raise DudiError(f"--columns: expected pairs such as prompt=question,completion=answer, found {text!r}")
    return {ours.strip(): name.strip() for ours, _, name in pairs}


_KEYS = r"sources\.\d+\.source|source|format|languages?|columns|ignore|split|revision|quality_filter|template_folder"
_KEY = re.compile(rf"""data\.({_KEYS})\b(?: = ("?[\w\[\]'"]+))?""")


def _option(key: re.Match[str]) -> str:
    name, value = key[1].replace("_", "-"), (key[2] or "").strip("[]\"'")
    if name.startswith("source"):
        return "SOURCE"
    return "--no-quality-filter" if value == "false" else f"--{name} {value}".rstrip()


@contextmanager
def _as_options() -> Iterator[None]:
    """Faults that name the options of this command line where they would name the keys of a recipe."""
    try:
        yield
    except DudiError as error:
        raise DudiError(_KEY.sub(_option, str(error))) from None


def _data(sources: Sequence[str], format: str, language: str | None, languages: str | None, **values: Any) -> Data:
    from pydantic import ValidationError

    from dudi.recipe.schema import Data

    codes = _listed(languages or "")
    named: dict[str, Any] = {"source": sources[0]}
    if len(sources) > 1:
        revision = values.pop("revision")
        named = {"sources": tuple({"source": one, "revision": revision} for one in sources)}
    try:
        return Data.model_validate({**named, "format": format, "language": language, "languages": codes, **values})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first.get("ctx", {}).get("error", first["msg"]))
        option = str(first["loc"][0]).replace("_", "-")
        raise DudiError(f"--{option}: {message}, found {str(first['input'])[:80]!r}") from None


def _print(report: DataReport, more: Sequence[str] = ()) -> None:
    from dudi.data.report import COLUMNS

    faults = [fault for counts in report.languages.values() for fault in counts.faults]
    lines = (*report.details(), *faults, *(f"note: {note}" for note in (*report.notes, *more)))
    _print_table(COLUMNS, report.table(), [_KEY.sub(_option, line) for line in lines])


def _print_trial(trial: Trial) -> None:
    from dudi.text.trial import COLUMNS

    _print_table(COLUMNS, trial.table(), [_KEY.sub(_option, line) for line in trial.details()])


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="left" if name == "language" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a log or a pipe has no edge
    console.print(table)
    for line in lines:
        console.print(Text(line), soft_wrap=True)

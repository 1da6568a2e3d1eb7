"""`dudi lab`: lay out the lab's folders, or rebuild its models. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The lab: a small world in eight languages, with models, data and a benchmark.", no_args_is_help=True
)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="A new folder.")] = Path("lab"),
    weights: Annotated[Path | None, typer.Option(help="A build of one's own, instead of the shipped one.")] = None,
    share: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Of the benchmark's items, the first of each task; the demo: a third."),
    ] = 1.0,
) -> None:
    """Lay out data/, benchmark/ and the models as ordinary folders, which `dudi run lab/...` and `dudi eval` read."""
    from dudi.lab.build import WEIGHTS, export

    export(folder, weights or WEIGHTS, share=share)
    typer.echo(f"lab folder: {folder}")


@app.command("build")
def build_command(
    folder: Annotated[Path, typer.Argument(help="A new folder, or that of a build that was stopped.")],
    tiny: Annotated[bool, typer.Option("--tiny", help="A minute: for tests; its models know next to nothing.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    only: Annotated[str | None, typer.Option(help="Only this model, such as teacher.")] = None,
) -> None:
    """Train tokenizer, teacher and student bases from nothing; a build that was stopped continues."""
    from dudi.lab.build import build

    build(folder, tiny, seed, typer.echo, only)


@app.command("measure")
def measure_command(
    model: Annotated[str, typer.Argument(help="A model folder, such as lab/teacher.")],
    folder: Annotated[Path, typer.Option("--output", help="For the prompts, the answers and measure.json.")],
    each: Annotated[int, typer.Option(min=2, max=1000, help="Items of a task and language.")] = 6,
    trained: Annotated[
        bool, typer.Option("--trained", help="Items of the training part, as the instruction data asks them.")
    ] = False,
) -> None:
    """How a model reads z and p_z: share in the asked language, score by mode, what the demonstration brings."""
    import json
    from functools import partial

    from dudi.lab.measure import measure
    from dudi.lab.tasks import Split

    part: Split = "train" if trained else "test"
    found = measure(model, folder, each, part, say=partial(typer.echo, err=True))  # standard output is the JSON alone
    typer.echo(json.dumps(found, indent=1))


@app.command("tables")
def tables_command(
    only: Annotated[
        list[str] | None, typer.Option(help="A table (table2), a finding (F3) or a cell (gkd); repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Whole pipelines of each method.")] = 4,
    first: Annotated[int, typer.Option(min=0, help="The first seed; 100 and up are for development.")] = 0,
    extend: Annotated[bool, typer.Option("--extend", help="Seeds 4 to 7, of findings that four left open.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, each on one core.")] = 2,
    output: Annotated[
        Path, typer.Option(help="Of cells.jsonl, which is added to, findings.md and findings.html.")
    ] = Path("runs/lab-tables"),
    runs: Annotated[Path | None, typer.Option(help="Of trainings and evaluations; by default OUTPUT/runs.")] = None,
    lab: Annotated[Path | None, typer.Option(help="An exported lab of one's own.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A build of one's own, instead of the shipped one.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over every cell; repeatable.")
    ] = None,
) -> None:
    """The paper's tables, figures and findings in the lab: train what has no line yet, print all from the lines."""
    from rich.console import Console

    from dudi.lab.tables.command import Asked, tables

    asked = Asked(output, tuple(only or ()), seeds, first, jobs, runs, lab, weights, tuple(set_ or ()), extend)
    typer.echo(f"findings: {tables(asked, Console(highlight=False, markup=False))}")

"""The command line. Thin: each command imports what it needs, so that help and checks load no torch."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from rich.table import Column, Table

from dudi import __version__
from dudi.data.cli import app as data_app
from dudi.errors import DudiError
from dudi.evals import options
from dudi.lab.cli import app as lab_app
from dudi.run.cli import card, export, push, push_data
from dudi.run.launch import Launch, end_with_launcher, hand_over, launch_run, stopped
from dudi.run.plan import options as planning
from dudi.signals import Mode

app = typer.Typer(
    name="dudi",
    help="Distil small language models for Southeast Asian languages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app.command("push")(push_data)
app.add_typer(data_app, name="data")
app.add_typer(lab_app, name="lab")
app.command()(card)
app.command()(export)
app.command()(push)
WIDE = 10_000
"""Columns where nobody looks: a log or a pipe has no edge, and nothing is wrapped or cut for one."""
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; repeatable.")]


def _page(text: str) -> None:
    """Markdown: laid out on a terminal, as it is elsewhere."""
    out.print(Markdown(text) if out.is_terminal else text, soft_wrap=not out.is_terminal)


def _rule(title: str) -> None:
    """A heading, with a rule to the edge where there is one."""
    if out.is_terminal:
        out.rule(title, align="left")
    else:
        out.print(f"─ {title}", soft_wrap=True)


@app.command()
def methods() -> None:
    """Print the paper's Table 1, derived from the methods that train."""
    from dudi.methods import TABLE_1_COLUMNS, table_1

    table = Table(*TABLE_1_COLUMNS)
    for row in table_1():
        table.add_row(*row)
    out.print(table)


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from dudi.recipe.read import load_recipe, shipped_recipes

    names = shipped_recipes()
    # the names are what one copies: never cut, however narrow the terminal
    table = Table(Column("Recipe", min_width=max(map(len, names))), Column("Paper", no_wrap=True), "Method", box=None)
    for name in names:
        r = load_recipe(name)
        method = r.to_method()
        number = f"{r.paper.average:.1f} (table {r.paper.table})" if r.paper else ""
        table.add_row(name, number, f"{method.name} ({method.variant})")
    out.print(table)


@app.command()
def check(
    recipe: RecipeArgument,
    set_: SetOption = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run every stage on a few rows, and keep nothing.")
    ] = False,
) -> None:
    """Check a recipe in full, and that its models' folders and its data are there; print signals and stages. Nothing is
    loaded."""
    from dudi.recipe.read import load_recipe
    from dudi.recipe.stages import Generate, plan
    from dudi.run.paths import on_the_hub, teacher_of
    from dudi.run.settings import check_recipe
    from dudi.text.verbalizer import Verbalizer

    loaded = load_recipe(recipe, set_ or ())
    check_recipe(loaded)
    Verbalizer(loaded.data.languages, folder=loaded.data.template_folder)
    method = loaded.to_method()
    out.print(f"{loaded.name}: {method.name} ({method.variant})")
    out.print(f"  student {loaded.models.student}, teacher {teacher_of(loaded)}")
    for s in method.signals:
        out.print(f"  {s.weight:g} x {s.name}: {s.description}")
    for number, stage in enumerate(plan(loaded), 1):
        what = f"{stage.writer} writes {stage.response.value}" if isinstance(stage, Generate) else f"from {stage.start}"
        out.print(f"  stage {number}: {stage.name}, {what}")
    names = on_the_hub(loaded)
    if names:
        out.print(f"  taken for names on the hub, and not looked up: {', '.join(dict.fromkeys(names))}")
    if rehearse:
        from dudi.run.rehearsal import rehearse_recipe

        for line in rehearse_recipe(loaded):
            out.print(f"  {line}", soft_wrap=True)
        out.print("  rehearsed: every stage loads, probes, steps, saves and is loaded again")


@app.command("plan")
def plan_run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    device: planning.Device = None,
    gpus: planning.Gpus = 1,
    price: planning.Price = None,
    measure: planning.Measure = False,
    json_: planning.Json = None,
) -> None:
    """Before anything is paid for: what a run reads and cuts, its memory, time, cost and disk. No weights are loaded,
    but with --measure; ends with status 1 where the run would not fit."""
    from dudi.recipe.read import load_recipe
    from dudi.run.plan.plan import plan
    from dudi.run.plan.show import parts, write_json

    said = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True).print
    planned = plan(load_recipe(recipe, set_ or ()), device, gpus, price, measure, said)
    text = json.dumps(planned.table(), ensure_ascii=False, indent=1)
    if json_ == "-":
        out.print(text, soft_wrap=True)
    else:
        for part in parts(planned):
            out.print(part, soft_wrap=isinstance(part, str))
        if json_ is not None:
            write_json(Path(json_), text)
    if planned.faults:
        if measure:
            said("dudi: nothing was measured: the run does not fit")
        raise typer.Exit(1)


@app.command()
def run(
    recipe: RecipeArgument,
    set_: SetOption = None,
    output: Annotated[str | None, typer.Option(help="The run's folder; by default the recipe's `output`.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    rehearsal: Annotated[bool, typer.Option(help="Every stage on a few rows first: what fails, fails at once.")] = True,
    launch: Annotated[Launch | None, typer.Option(help="Start several processes on this machine.")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="With --launch: how many; by default one a GPU.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Write a Chrome trace of five steps to this file.")] = None,
) -> None:
    """Run a recipe: cold start, generation where needed, the method. The folder holds all it takes to repeat it."""
    from dudi.recipe.read import load_recipe

    overrides = list(set_ or ())
    if output is not None:
        overrides.append(f"output={json.dumps(output, ensure_ascii=False)}")  # a JSON text is a TOML text
    loaded = load_recipe(recipe, overrides)
    if launch is not None:
        raise typer.Exit(launch_run(launch, nproc, recipe, loaded, overrides, resume, rehearsal, profile))
    if nproc is not None:
        raise DudiError("--nproc says how many processes --launch starts: give --launch ddp or fsdp2 too")
    end_with_launcher()
    from dudi.run.pipeline import run as run_recipe
    from dudi.run.progress import Watcher
    from dudi.training.profile import Profile

    tracing = [Profile(profile)] if profile is not None else []
    folder = run_recipe(loaded, resume, [Watcher(out)], tracing, say=out.print, rehearsal=rehearsal)
    summary = folder / "summary.md"
    if summary.exists() and os.environ.get("RANK", "0") == "0":  # only the first process of a distributed run talks
        _page(summary.read_text(encoding="utf-8"))
        out.print(f"run folder: {folder}", soft_wrap=True)


@app.command()
def verbalize(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Without one: turns of a row that ships with dudi.")
    ] = None,
    row: Annotated[int, typer.Option(help="Number of the training row; 0 is the first.")] = 0,
    to: Annotated[str | None, typer.Option(help="Force l_z, such as vi.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="Another verbalizer mode than the recipe's.")] = None,
    set_: SetOption = None,
) -> None:
    """Show x, y, p_z and z of one row exactly as each model reads them, with token counts."""
    from dudi.recipe.read import load_recipe

    loaded = None if recipe is None else load_recipe(recipe, set_ or ())
    from dudi.run.verbalized import verbalized, verbalized_plainly

    heading, texts = verbalized_plainly(row, to, mode) if loaded is None else verbalized(loaded, row, to, mode)
    out.print(heading, style="bold", soft_wrap=True)
    for text in texts:
        tokens = "" if text.tokens is None else f", {text.tokens} tokens"
        _rule(f"{text.name}: read by {text.reader}{tokens}")
        out.print(text.text, soft_wrap=True)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar, to be called with what is done and the total; none where nobody sees it."""
    if not out.is_terminal:
        yield None
        return
    with Progress(console=out) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command("eval")
def evaluate(
    model: options.Model = None,
    with_: options.With = options.Evaluator.DUDI,
    benchmark: options.Benchmark = None,
    output: options.Output = None,
    seed: options.Seed = None,
    temperature: options.Temperature = 0.0,
    batch: options.Batch = 64,
    limit: options.Limit = None,
    overwrite: options.Overwrite = False,
    template: options.Template = None,
    chat: options.Chat = None,
    attention: options.Attention = None,
    engine: options.Engine = "local",
    checkout: options.Checkout = None,
    python: options.Python = None,
    tasks: options.Tasks = None,
    runs: options.Runs = None,
    server: options.Server = None,
    prepare: options.Prepare = False,
    import_: options.Import = None,
) -> None:
    """Evaluate a model folder: answer every item of a benchmark folder, score, average, print the table; or ask and
    score with another evaluator."""
    shared = options.Shared(
        output, temperature, batch, limit, overwrite, template, tuple(chat or ()), attention, engine
    )
    seahelm = options.SeaHelm(checkout, python, tuple(tasks or ()), runs, server, prepare, tuple(import_ or ()))
    if with_ is options.Evaluator.SEAHELM or import_:
        from dudi.evals.seahelm.command import seahelm_command

        options.refuse("--with seahelm", benchmark=benchmark, seed=seed)
        _page(seahelm_command(model, seahelm, shared, _bar, lambda text: out.print(text, soft_wrap=True)))
        return
    if model is None:
        raise DudiError("MODEL is missing: give a model folder, such as RUN/2-dudi/model")
    if with_ is options.Evaluator.LM_EVAL:
        from dudi.evals.harness.command import lm_eval_command

        replace(seahelm, tasks=()).refuse_any("--with lm-eval")
        options.refuse("--with lm-eval", seed=seed)
        page, target = lm_eval_command(model, benchmark, tasks or (), shared, out.print)
    else:
        from dudi.evals.command import dudi_command
        from dudi.lab.artefacts import lab_benchmark

        seahelm.refuse_any("--with dudi, the default")
        folder = Path(benchmark) if benchmark else lab_benchmark(model)
        page, target = dudi_command(model, folder, seed or (0,), shared, _bar, out.print)
    _page(page)
    out.print(f"evaluation folder: {target}", soft_wrap=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="A new folder, or that of a demo that was stopped.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of all trainings.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Whole pipelines, cold start included, with this many seeds from --seed on.")
    ] = 1,
    student: Annotated[str, typer.Option(help="A student of the lab's weights.")] = "student-small",
    set_: SetOption = None,
    weights: Annotated[Path | None, typer.Option(help="A lab build of one's own, instead of the shipped one.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Commands at a time, each on one core.")] = 2,
) -> None:
    """See it work: the lab's base student, SFT, SFT continued, GKD, DuDi and the teacher, compared on one page."""
    from dudi.lab import demo as lab_demo

    page = lab_demo.demo(output, tuple(range(seed, seed + seeds)), student, tuple(set_ or ()), weights, out, jobs)
    _page(lab_demo.in_short(page))
    out.print(f"report: {page}", soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of `dudi run`.")] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="NAME=FOLDER", help="An evaluation; by default those found below the runs."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(metavar="NAME", help="Compare with it; by default the first.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to write; by default report/ in the first run.")] = None,
    benchmark: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the prompts are.")] = None,
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whom the first sentence is about; by default the best.")
    ] = None,
    tables: Annotated[Path | None, typer.Option(metavar="FOLDER", help="That of `dudi lab tables` instead.")] = None,
) -> None:
    """Write one self-contained page about runs and evaluations: scores, differences, training, answers side by side."""
    if tables is None:
        from dudi.report.write import write_report

        page = write_report(runs or (), evals or (), baseline, output, benchmark, subject)
    elif runs or evals or baseline or benchmark or subject:
        raise DudiError("--tables: a page of its own; only --output goes with it")
    else:
        from dudi.lab.tables.command import report_lines

        page = report_lines(tables, output)
    out.print(f"report: {page}", soft_wrap=True)


@app.command()
def compare(
    evaluations: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FOLDER...", help="Folders of `dudi eval`; a name once for each seed.")
    ],
    baseline: Annotated[str | None, typer.Option(metavar="NAME", help="Compare with it; by default the first.")] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write it too: .md, .json, .tex or .html; repeatable."),
    ] = None,
    paper: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Show the rows of a table of the paper beside, such as 2.")
    ] = None,
) -> None:
    """Compare methods by their evaluations: scores over training seeds, differences with intervals, significance."""
    from dudi.report.comparison.write import write_comparison

    _page(write_comparison(evaluations, baseline, output or (), paper))


def _version(value: bool) -> None:
    if value:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Distil small language models for Southeast Asian languages."""


def main() -> None:
    """Entry point: a `DudiError` is one line on standard error and its exit status (2: bad input), no traceback."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the hub's client is imported, which is later
    try:
        app()
    except DudiError as error:
        line = " ".join(str(error).split())
        if hand_over(line, error.status):
            sys.exit(error.status)
        print(f"dudi: {line}", file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        if error.filename is not None or error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries again at its end
        print("dudi: standard output cannot be written: no space left", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # how typer ends on Ctrl-C, without a word
            print(f"dudi: {stopped(sys.argv[1:])}", file=sys.stderr)
        raise


def entry() -> None:
    """`dudi`, as a user calls it: what libraries warn of is for developers, whose tests make errors of it."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    main()


if __name__ == "__main__":
    entry()

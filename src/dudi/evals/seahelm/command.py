"""`dudi eval --with seahelm` and `dudi eval --import`: from options to the page that is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.evaluate import check_arguments, default_output, model_folder
from dudi.evals.options import SeaHelm, Shared, refuse
from dudi.evals.respond import fingerprint, load_responder, used_chat_kwargs
from dudi.evals.seahelm.answers import Asker, Ours
from dudi.evals.seahelm.checkout import Checkout, open_checkout
from dudi.evals.seahelm.collect import read_results
from dudi.evals.seahelm.drive import SET, Drive
from dudi.evals.seahelm.imported import check_runs, clear, model_of
from dudi.evals.seahelm.prepare import prepare
from dudi.evals.seahelm.server import connect
from dudi.evals.seahelm.write import Scored, write_scores
from dudi.evals.tables import averages
from dudi.lock import locked
from dudi.models.load import arithmetic
from dudi.records import DECODERS, AskedModel, Decoding, Table
from dudi.strict import read_text
from dudi.text.template import keywords

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
VERSIONS = ("dudi", *DECODERS)
OF_SET = ("sentiment", "if-eval")
"""Tasks that every language of the set `seahelm` has: with them, the paper's averages are asked for."""


def seahelm_command(model: str | None, own: SeaHelm, shared: Shared, bar: Bar, say: Callable[[str], None]) -> str:
    """Do what the options say; the page in Markdown. Raises `DudiError`."""
    if own.import_:
        return _import(model, own, shared, say)
    checkout = open_checkout(own.checkout, own.python)
    names = tuple(name for given in own.tasks or (SET,) for name in given.split(",") if name)
    if own.prepare:
        return prepare(checkout, names)
    if model is None:
        raise DudiError("MODEL is missing: give a model folder, such as RUN/2-dudi/model")
    say(checkout.remark)
    drive, asker = _drive(model, checkout, names, own, shared, say)
    with locked(drive.folder):
        with bar("answered") as progress:
            scored = drive.run(asker, shared.overwrite, progress)
        _tell(scored, say)
        return _page(write_scores(drive.folder, scored, SET in names), drive.folder, say)


def _drive(
    model: str, checkout: Checkout, names: tuple[str, ...], own: SeaHelm, shared: Shared, say: Callable[[str], None]
) -> tuple[Drive, Callable[[], Asker]]:
    runs = tuple(range(own.runs or 1))
    check_arguments(model, runs, shared.temperature, shared.batch, shared.limit, shared.attention, shared.engine)
    if own.server is not None:
        refuse("--server: it has its own", template=shared.template, attention=shared.attention)
    folder, given = model_folder(model), keywords(shared.chat)
    template = None if shared.template is None else read_text(Path(shared.template))
    decoding = Decoding(
        temperature=shared.temperature,
        seeds=runs,
        batch=shared.batch,
        limit=shared.limit,
        dtype=str(arithmetic("auto")[1]).removeprefix("torch.") if own.server is None else "the server's",
        attention=shared.attention,
        template_sha256=None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        chat_kwargs=used_chat_kwargs(folder, given),
        engine=shared.engine if own.server is None else "server",
    )
    drive = Drive(
        model=AskedModel(model, **fingerprint(folder)),
        checkout=checkout,
        names=names,
        runs=runs,
        limit=shared.limit,
        decoding=decoding,
        versions={name: metadata.version(name) for name in VERSIONS},
        output=Path(shared.output) if shared.output is not None else default_output(model, "seahelm"),
        say=say,
    )
    return drive, _asker(model, own.server, shared, template, given)


def _asker(
    model: str, server: str | None, shared: Shared, template: str | None, given: Mapping[str, Any]
) -> Callable[[], Asker]:
    """Who answers, loaded when first asked for."""
    found: list[Asker] = []

    def asker() -> Asker:
        if not found and server is not None:
            found.append(connect(server, model, shared.temperature, given))
        elif not found:
            settings = (shared.temperature, shared.batch, template, given, shared.attention, shared.engine)
            found.append(Ours(load_responder(model, *settings)))
        return found[0]

    return asker


def _import(model: str | None, own: SeaHelm, shared: Shared, say: Callable[[str], None]) -> str:
    """Read results files, one for each run of one model."""
    refuse("--import", checkout=own.checkout, python=own.python, tasks=own.tasks, runs=own.runs, server=own.server)
    refuse("--import", prepare=own.prepare, limit=shared.limit, template=shared.template, chat=shared.chat)
    refuse("--import", attention=shared.attention, engine=shared.engine != Shared.engine)
    refuse("--import", batch=shared.batch != Shared.batch)
    if model is not None:
        raise DudiError("--import reads what SEA-HELM wrote: leave MODEL out")
    files = [Path(name).expanduser() for name in own.import_]
    if len({file.resolve() for file in files}) < len(files):
        raise DudiError("--import: the same results file twice; give one for each run")
    runs = {number: read_results(file) for number, file in enumerate(files)}
    check_runs(list(runs.values()))
    asked, commit = model_of(files)
    decoding = Decoding(shared.temperature, tuple(runs), shared.batch, None, "unknown", None, None, {}, "SEA-HELM")
    scored = Scored(asked, commit, decoding, {"dudi": metadata.version("dudi")}, runs, (), {})
    folder = Path(shared.output) if shared.output is not None else files[0].parent.parent / "dudi"
    papers = any(task.task in OF_SET for results in runs.values() for task in results.tasks)
    with locked(folder):
        clear(folder, asked, shared.overwrite)
        _tell(scored, say)
        return _page(write_scores(folder, scored, papers), folder, say)


def _tell(scored: Scored, say: Callable[[str], None]) -> None:
    """What was taken for a real 0."""
    for line in dict.fromkeys(task.note for results in scored.runs.values() for task in results.tasks if task.note):
        say(line)


def _page(tables: Mapping[str, Table], folder: Path, say: Callable[[str], None]) -> str:
    """All averages; what is missing is named once."""
    out: list[str] = []
    for name, table in tables.items():
        out += [f"## {name}", "", *averages(table), ""]
    lines = dict.fromkeys(line for table in tables.values() for line in table.refused)
    if lines:
        out += ["Missing scores. A `-` is an average that would contain one of them:", ""]
        out += [f"- {line}" for line in lines] + [""]
    compared = ", ".join(str(folder / name) for name in tables if name != "leaderboard")
    return "\n".join([*out, f"For dudi compare: {compared}"]) + "\n"

"""`--prepare`: all that is missing for a set of tasks, and how to get it. Nothing is downloaded. No torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dudi.evals.seahelm.checkout import Checkout
from dudi.evals.seahelm.prompts import Cell, read_plan, spec


@dataclass(frozen=True)
class Lack:
    """One thing that is missing: which tasks wait for it, and what to do."""

    what: str
    cells: tuple[str, ...]
    cure: str


def prepare(checkout: Checkout, names: tuple[str, ...]) -> str:
    """A report in Markdown. Raises `DudiError` where SEA-HELM itself cannot be imported."""
    with tempfile.TemporaryDirectory(prefix="dudi-seahelm-") as scratch:
        plan = read_plan(checkout, names, Path(scratch) / "plan.log")
        told = spec(names, None, Path(scratch))
        found = {(e["language"], e["task"]): e for e in checkout.call("check", told, Path(scratch) / "check.log")}
    modules: dict[str, list[str]] = {}
    data: dict[str, list[str]] = {}
    scorers: dict[str, list[str]] = {}
    for cell in plan.cells:
        name, event = f"{cell.task} ({cell.language})", found[cell.key]
        if cell.unmet is not None:
            scorers.setdefault(cell.unmet, []).append(name)
        if cell.judged_by_llm:
            continue
        if event["module"]:
            modules.setdefault(event["module"], []).append(name)
        if event["data"]:
            data.setdefault(cell.data, []).append(name)
    ready = [
        cell for cell in plan.cells if cell.unmet is None and not any(found[cell.key][k] for k in ("module", "data"))
    ]
    lacks = [*_modules(checkout, modules), *_data(checkout, data, plan.cells), *_scorers(scorers)]
    head = [f"{checkout.remark}, run by {checkout.python}.", ""]
    head += [f"Ready: {len(ready)} of {len(plan.cells)} tasks (each language counts).", ""]
    return "\n".join([*head, *(line for lack in lacks for line in _lines(lack))]) + "\n"


def _modules(checkout: Checkout, modules: dict[str, list[str]]) -> Iterable[Lack]:
    for module, cells in modules.items():
        yield Lack(f"the package {module}", tuple(cells), checkout.install([module]))


def _data(checkout: Checkout, data: dict[str, list[str]], cells: Iterable[Cell]) -> Iterable[Lack]:
    local = {cell.data for cell in cells if cell.local}
    hub = {name: waiting for name, waiting in data.items() if name not in local and not name.endswith(".jsonl")}
    for name, waiting in data.items():
        if name not in hub:
            yield Lack(f"the file {name}", tuple(waiting), "it belongs to the checkout: see git status there")
    if hub:
        yield Lack(
            f"data sets of the hub that are not in this machine's cache: {', '.join(hub)}",
            tuple(name for waiting in hub.values() for name in waiting),
            "the first run downloads them, where there is a network (for a machine without one, run it elsewhere and"
            " copy HF_HOME); for gated ones, accept the terms at https://huggingface.co/datasets/NAME and set HF_TOKEN",
        )


def _scorers(scorers: dict[str, list[str]]) -> Iterable[Lack]:
    for reason, cells in scorers.items():
        if "LLM judge" in reason:
            cure = "SEA-HELM itself runs these tasks; dudi eval --import reads what it wrote; paper7 needs none of them"
        else:
            cure = "answers are kept: call the same again on a machine with a GPU, and only these tasks are scored"
        yield Lack(reason, tuple(cells), cure)


def _lines(lack: Lack) -> list[str]:
    shown = ", ".join(lack.cells[:6]) + (f" and {len(lack.cells) - 6} more" if len(lack.cells) > 6 else "")
    return [f"- {lack.what}", f"  - for: {shown}", f"  - {lack.cure}"]

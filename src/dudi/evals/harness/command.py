"""`dudi eval MODEL --with lm-eval`: its options, and what it prints. Loads torch only once they fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dudi.errors import DudiError
from dudi.evals.options import Shared, refuse
from dudi.text.template import keywords

WHERE = "--with lm-eval"


def lm_eval_command(
    model: str, benchmark: str | None, tasks: Sequence[str], shared: Shared, say: Callable[[str], None]
) -> tuple[str, Path]:
    """Evaluate a model folder: the table as Markdown, and where all is. Raises `DudiError`."""
    refuse(WHERE, temperature=shared.temperature, engine=shared.engine != "local")
    if (benchmark is None) == (not tasks):
        fault = "no --tasks and no --benchmark" if benchmark is None else "both --tasks and --benchmark"
        raise DudiError(
            f"{WHERE}: {fault}: give --tasks belebele,xcopa for tasks of the hub, or --benchmark FOLDER for the"
            " multiple-choice items of a folder"
        )
    from dudi.evals.bench import read_benchmark
    from dudi.evals.evaluate import default_output
    from dudi.evals.harness.run import Asking, evaluate_benchmark, evaluate_tasks
    from dudi.evals.tables import summary

    template = None if shared.template is None else Path(shared.template)
    how = Asking(shared.batch, shared.limit, template, keywords(shared.chat), shared.attention)
    name = "lm-eval" if benchmark is None else f"lm-eval-{read_benchmark(benchmark).name}"
    output = default_output(model, name) if shared.output is None else Path(shared.output)
    if benchmark is None:
        table, bench = evaluate_tasks(model, tasks, output, how, say, shared.overwrite)
    else:
        table, bench = evaluate_benchmark(model, Path(benchmark), output, how, say, shared.overwrite)
    return summary(table, bench), output

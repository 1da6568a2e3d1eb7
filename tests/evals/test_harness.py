"""`dudi eval --with lm-eval`, as far as it needs no lm-eval: which tasks, what is written, what is read."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.evals import DESCRIPTION, item, rows, save_model, write
from typer.testing import CliRunner

import dudi
from dudi.cli import app
from dudi.errors import DudiError
from dudi.evals.aggregate import aggregate
from dudi.evals.bench import read_benchmark
from dudi.evals.harness import run
from dudi.evals.harness.collect import answers, hub_benchmark, samples, score, too_long, unasked
from dudi.evals.harness.run import Asking, evaluate_benchmark, evaluate_tasks
from dudi.evals.harness.tasks import FAMILIES, Cell, chosen, hub_description, local_benchmark, write_tasks
from dudi.lock import locked


# ── which tasks ──────────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_family_is_all_its_languages_and_a_task_is_one() -> None:
    assert [cell.language for cell in chosen(["belebele"])] == ["id", "vi", "th", "ta", "tl", "ms", "my"]
    found = chosen(["xcopa,xnli_th", "xcopa_th", " belebele_mya_Mymr"])
    assert [(c.task, c.language) for c in found] == [
        *(("xcopa", l) for l in ("id", "vi", "th", "ta")),
        ("xnli", "th"),
        ("belebele", "my"),
    ]
    assert len({cell.name for cell in chosen([*FAMILIES])}) == 22


@pytest.mark.parametrize("names, said", [(["xcopas"], "unknown task: 'xcopas'"), (["xcopa,"], "unknown task: ''")])
def test_another_name_is_refused_with_the_choices(names: list[str], said: str) -> None:
    with pytest.raises(DudiError, match=re.escape(said)):
        chosen(names)


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────
def likely(folder: Path) -> Path:
    """The small benchmark with choices that are texts, in competencies of their own and shared."""
    tasks = {**DESCRIPTION["tasks"], "cause": {"competency": "rules", "metric": "choice_loglik"}}
    more = [
        item("x1", "cause", "id", "Hujan {{turun}}?", choices=["jalan basah.", "Kering"], targets=["Jalan basah"]),
        item("x2", "cause", "id", "Lapar", choices=["tidur", "makan"], targets=["makan"]),
    ]  # fmt: skip
    return write(folder, {**DESCRIPTION, "tasks": tasks}, [*rows(), *more])


def test_items_with_choices_are_written_as_yaml_and_jsonl(tmp_path: Path) -> None:
    bench = local_benchmark(read_benchmark(likely(tmp_path / "b")), None)
    assert bench.description.competencies == ("nlu (acc)", "rules (acc)") and bench.description.translation == ()
    cells = write_tasks(bench, tmp_path)
    assert [(c.task, c.language, c.refused) for c in cells] == [
        *(("mood", l, None) for l in ("id", "th")),
        ("cause", "id", None),
    ]
    yaml = json.loads((tmp_path / f"{cells[2].name}.yaml").read_text(encoding="utf-8"))
    assert (yaml["task"], yaml["output_type"], yaml["doc_to_text"]) == (cells[2].name, "multiple_choice", "text")
    lines = Path(yaml["dataset_kwargs"]["data_files"]["test"]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "x1", "text": "Hujan {{turun}}?", "choices": ["jalan basah.", "Kering"], "label": 0},
        {"id": "x2", "text": "Lapar", "choices": ["tidur", "makan"], "label": 1},
    ]


def test_the_limit_is_of_each_task_and_language(tmp_path: Path) -> None:
    bench = local_benchmark(read_benchmark(likely(tmp_path)), 1)
    assert [one.id for one in bench.items] == ["m1", "m3", "x1"]


def test_items_of_several_messages_cannot_be_asked(tmp_path: Path) -> None:
    given = [
        {**row, "messages": [{"role": "system", "content": "singkat"}, *row["messages"]]} if row["id"] == "m2" else row
        for row in rows()
    ]
    bench = local_benchmark(read_benchmark(write(tmp_path / "b", items=given)), None)
    id_, th = write_tasks(bench, tmp_path)
    assert id_.refused == "1 of 2 items have more than one message, which a local task of lm-eval cannot hold"
    assert th.refused is None
    found = [score(unasked(id_, bench.cells["mood", "id"]), "nlu (acc)", bench.name, "m")]
    table = aggregate(found, bench)
    assert table.by_language["id"].mean is None and f"mood, id: {id_.refused}" in table.refused


def test_a_benchmark_without_choices_is_refused(tmp_path: Path) -> None:
    tasks = {"capital": DESCRIPTION["tasks"]["capital"]}
    only = {**DESCRIPTION, "tasks": tasks, "competencies": ["nlu"], "translation": []}
    folder = write(tmp_path, only, [row for row in rows() if row["task"] == "capital"])
    with pytest.raises(DudiError, match="'small': lm-eval compares choices, and no task has any: capital"):
        local_benchmark(read_benchmark(folder), None)


# ── what is read ─────────────────────────────────────────────────────────────────────────────────────────────────────
def sample(number: int, log_p: tuple[float, ...], target: Any, acc: float, **doc: Any) -> dict[str, Any]:
    """A sample as lm-eval 0.4.13 gives it."""
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": [("P", choice) for choice in "ABC"[: len(log_p)]],
        "resps": [[(value, False)] for value in log_p],
        "filtered_resps": [(value, False) for value in log_p],
        "doc_hash": f"h{number}",
        "acc": acc,
    }


FOUND = {
    "t_a": [sample(1, (-1.0, -2.0), 1, 0.0), sample(0, (-3.0, -2.0, -2.0), "B", 1.0)],
    "t_b": [sample(0, (-1.0, -2.0), 0, 1.0)],
}


def test_samples_of_a_group_are_one_cell() -> None:
    cell = Cell("global_mmlu", "ms", "global_mmlu_full_ms")
    found = {cell: samples(FOUND)}
    bench = hub_benchmark(hub_description([cell]), found)
    assert [(i.id, i.choices, i.targets) for i in bench.items] == [
        ("t_a-0", ("A", "B", "C"), ("B",)),
        ("t_a-1", ("A", "B"), ("B",)),
        ("t_b-0", ("A", "B"), ("A",)),
    ]
    graded = answers(cell, found[cell], bench.items, None)
    assert [(one.response, one.value, one.log_p) for one in graded] == [
        ("B", 1.0, (-3.0, -2.0, -2.0)),  # of equals the first
        ("A", 0.0, (-1.0, -2.0)),
        ("A", 1.0, (-1.0, -2.0)),
    ]
    one = score(graded, "global_mmlu (acc)", bench.name, "m")
    assert (one.raw, one.score, one.n, one.metric) == (pytest.approx(200 / 3), pytest.approx(200 / 3), 3, "acc")
    table = aggregate([one], bench)
    assert table.overall.mean == pytest.approx(200 / 3) and table.competencies == ("global_mmlu (acc)",)


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_a_log_p_that_is_no_number_is_refused(broken: float) -> None:
    with pytest.raises(DudiError, match=r"t_b, document 3: .* its weights are broken"):
        samples({**FOUND, "t_b": [sample(3, (-1.0, broken), 0, 1.0)]})


def test_other_documents_are_another_benchmark_and_another_template_is_not() -> None:
    def digest(**changes: Any) -> str:
        cell = Cell("xcopa", "id", "xcopa_id")
        changed = {name: [{**one, **changes} for one in rows] for name, rows in FOUND.items()}
        return hub_benchmark(hub_description([cell]), {cell: samples(changed)}).sha256

    assert digest(doc_hash="other") != digest() == digest(arguments=[("Q", "A"), ("Q", "B"), ("Q", "C")])


def test_items_that_lm_eval_would_cut_make_their_cell_missing() -> None:
    cell = Cell("xcopa", "id", "xcopa_id")
    found = samples(FOUND)
    assert too_long(found, [5, 9, 9], 9) is None
    refused = too_long(found, [5, 9, 10], 8)
    assert refused == "2 of 3 items could not be asked: up to 10 tokens are more than 8"
    items = hub_benchmark(hub_description([cell]), {cell: found}).items
    one = score(answers(cell, found, items, refused), "xcopa (acc)", "lm-eval", "m")
    assert (one.raw, one.score, one.error) == (None, None, refused)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_model(tmp_path / "m")


def said(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["eval", *arguments])
    assert isinstance(found.exception, DudiError)
    return str(found.exception)


def test_options_that_lm_eval_does_not_have_are_refused(model: str, tmp_path: Path) -> None:
    folder = str(write(tmp_path / "b"))
    given = (model, "--with", "lm-eval", "--benchmark", folder)
    assert said(*given, "--seed", "1") == "--seed is no option of --with lm-eval; see dudi eval --help"
    assert said(*given, "--temperature", "1").startswith("--temperature is no option of --with lm-eval")
    assert said(*given, "--engine", "other").startswith("--engine is no option of --with lm-eval")
    assert said(model, "--tasks", "xcopa") == "--tasks is no option of --with dudi, the default; see dudi eval --help"
    assert said(*given, "--tasks", "xcopa").startswith("--with lm-eval: both --tasks and --benchmark")
    assert said(model, "--with", "lm-eval").startswith("--with lm-eval: no --tasks and no --benchmark")


def test_without_lm_eval_one_line_says_so(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    wanted = "--with lm-eval: lm-eval is not installed: pip install 'dudi[lm-eval]'"
    assert said(model, "--with", "lm-eval", "--tasks", "xcopa") == wanted
    assert not (tmp_path / "m.eval").exists()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval is there, and must not be reached."""
    monkeypatch.setattr(run, "find_spec", lambda name: name)
    monkeypatch.setattr(run, "_Harness", None)


CALLS: dict[str, tuple[Callable[[str, Path], Any], str]] = {
    "batch": (lambda m, t: evaluate_tasks(m, ["xcopa"], t / "o", Asking(batch=0)), "batch: expected a positive"),
    "limit": (lambda m, t: evaluate_tasks(m, ["xcopa"], t / "o", Asking(limit=0)), "limit: expected a positive"),
    "attention": (lambda m, t: evaluate_tasks(m, ["xcopa"], t / "o", Asking(attention="x")), "attention: expected"),
    "model": (lambda m, t: evaluate_tasks(f"{m}x", ["xcopa"], t / "o", Asking()), "no model folder"),
    "task": (lambda m, t: evaluate_tasks(m, ["copa"], t / "o", Asking()), "--tasks: unknown task: 'copa'"),
    "benchmark": (lambda m, t: evaluate_benchmark(m, t / "none", t / "o", Asking()), "no benchmark in"),
    "output": (lambda m, t: evaluate_tasks(m, ["xcopa"], t / "m", Asking()), "holds something else than an evaluation"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_faults_are_told_before_anything_is_loaded(harness: None, model: str, tmp_path: Path, name: str) -> None:
    call, wanted = CALLS[name]
    with pytest.raises(DudiError, match=re.escape(wanted)):
        call(model, tmp_path)
    assert not (tmp_path / "o").exists()


def test_an_evaluation_that_is_there_is_not_replaced_unasked(harness: None, model: str, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "eval.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DudiError, match=r"holds an evaluation; .* --output, or replace it with --overwrite"):
        evaluate_tasks(model, ["xcopa"], tmp_path / "o", Asking())
    with locked(tmp_path / "o"), pytest.raises(DudiError, match="in use by process"):
        evaluate_tasks(model, ["xcopa"], tmp_path / "o", Asking(), overwrite=True)


def test_no_module_loads_an_extra_with_itself() -> None:
    files = sorted(Path(dudi.__file__).parent.rglob("*.py"))
    found = {
        (file.name, name)
        for file in files
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
        if name.split(".")[0] in ("lm_eval", "pythainlp")
    }
    assert len(files) > 100 and found == set()

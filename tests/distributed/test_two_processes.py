"""Two gloo processes are one process: losses, gradient norms, metrics by language, weights. Started with torchrun.

DDP with the methods that differ most in the fast tests; the other methods, and all under FSDP2, in the slow ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import runs
from kit.processes import start_two
from kit.runs import assert_close
from kit.workers import ddp, fsdp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dudi.methods import METHODS, Teacher, build_method, views
from dudi.run.pipeline import resume_stage, run

Training = tuple[Path, list[dict[str, Any]]]
"""Where a case was trained, and its steps."""
HALF = "FSDPQwen2ForCausalLM"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: all cases in one launch."""
    folder = tmp_path_factory.mktemp("two")
    ddp.recipes(folder, "two")  # models and rows are made once
    return start_two("ddp", folder)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of the other methods."""
    return start_two("ddp", tmp_path_factory.mktemp("more"), "more")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that hold half of the weights each."""
    folder = tmp_path_factory.mktemp("shards")
    ddp.recipes(folder, "two")
    return start_two("fsdp", folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Training]:
    """A case, trained in this process."""
    folder = tmp_path_factory.mktemp("alone")
    return cache(lambda name: (folder / name, ddp.train(folder / name, fsdp.CASES[name])))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A whole run, in this process."""
    folder = tmp_path_factory.mktemp("one")
    return cache(lambda k: run(ddp.recipes(folder, "one")[k], say=lambda *_: None))


def reports(two: Path, case: str) -> list[dict[str, Any]]:
    return [json.loads((two / f"{case}-{rank}.json").read_text()) for rank in range(2)]


def test_every_method_is_here() -> None:
    """All of `dudi methods`, as they are by default, under DDP and FSDP2; those that sample in a step, sampling too."""
    trained = [build_method(case.method) for case in (ddp.CASES | ddp.MORE).values()]
    assert {(m.name, m.variant) for m in trained} >= {(name, make().variant) for name, make in METHODS.items()}
    assert fsdp.CASES.keys() >= ddp.CASES.keys() | ddp.MORE.keys()
    free = {build_method(case.method).name for case in ddp.MORE.values() if not case.forced}
    assert free == {m.name for m in trained if any(view.response.sampled for view in views(m.signals))}


def assert_really_two(ranks: list[dict[str, Any]], wrapper: str) -> None:
    """Two processes, so wrapped; two epochs of nine rows, none trained twice; the last batch has one process's row."""
    for report in ranks:
        assert report["world"] == 2 and report["backend"] == "gloo" and len(report["steps"]) == ddp.STEPS
        assert {(step["world"], step["model"]) for step in report["steps"]} == {(2, wrapper)}
        assert [step["epoch"] for step in report["steps"]] == [0, 0, 0, 1, 1, 1]
    weights = [[step["weight"] for step in report["steps"]] for report in ranks]
    assert weights == [[[1.0, 1.0], [1.0, 1.0], [end]] * 2 for end in (1.0, 0.0)]
    for epoch in range(2):
        steps = [step for report in ranks for step in report["steps"] if step["epoch"] == epoch]
        trained = [r for step in steps for r, w in zip(step["rows"], step["weight"], strict=True) if w]
        assert sorted(trained) == list(range(9))


def assert_same_training(one: Training, ranks: list[dict[str, Any]], together: Path, case: str) -> None:
    """Responses token by token; metrics of every step, by signal and language; the weights after the last one."""
    alone, steps = one
    for single, a, b in zip(steps, *(report["steps"] for report in ranks), strict=True):
        assert single["tokens"] == a["tokens"] | b["tokens"] and not a["tokens"].keys() & b["tokens"].keys()
        assert single["signals"] == a["signals"] == b["signals"]
    here, there = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (alone, together)
    )
    assert len(here) == len(there) == ddp.STEPS + (2 if fsdp.CASES[case].evals else 0)
    for a, b in zip(here, there, strict=True):
        assert_close(b, a)
    train = [line for line in here if "eval" not in line]
    assert all(line["grad_norm"] > 1e-3 for line in train if "signal" in line) and len(train) == ddp.STEPS
    assert any(len(s["by_language"]) > 1 for line in train for s in line.get("signal", {}).values())
    weights = [load_file(together / f"weights-{rank}.safetensors") for rank in range(2)]
    assert runs.identical(*weights), "ranks have drifted apart"
    assert runs.furthest(weights[0], load_file(alone / "weights-0.safetensors")) < 1e-6


@pytest.mark.parametrize("case", ddp.CASES)
def test_two_processes_are_one(case: str, two: Path, alone: Callable[[str], Training]) -> None:
    assert_really_two(reports(two, case), "DistributedDataParallel")
    assert_same_training(alone(case), reports(two, case), two / case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ddp.MORE)
def test_two_processes_are_one_for_the_other_methods(case: str, more: Path, alone: Callable[[str], Training]) -> None:
    assert_really_two(reports(more, case), "DistributedDataParallel")
    assert_same_training(alone(case), reports(more, case), more / case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", fsdp.CASES)
def test_two_halves_are_one(case: str, shards: Path, alone: Callable[[str], Training]) -> None:
    assert_really_two(reports(shards, case), HALF)
    assert_same_training(alone(case), reports(shards, case), shards / case, case)


def assert_half(held: dict[str, Any]) -> None:
    assert held["sharded"] and held["class"] == HALF
    assert 0.5 * held["of"] <= held["bytes"] < 0.52 * held["of"]


@pytest.mark.slow
@pytest.mark.parametrize("case", fsdp.CASES)
def test_really_two_halves(case: str, shards: Path) -> None:
    """Student and teacher: DTensor parameters, about half the bytes on each rank, and all of a copy that decodes.

    (TRL's GKD, GOLD and Distillation neither place nor shard their teacher under FSDP.)
    """
    method = build_method(fsdp.CASES[case].method)
    judges = ["teacher"] if method.teacher is Teacher.LARGER else []
    for report in reports(shards, case):
        assert report["held"].keys() - {"reference"} == {"student", *judges}
        for name in report["held"].keys() - {"reference"}:
            assert_half(report["held"][name])
        samples = any(view.response.sampled for view in views(method.signals))
        assert report["decoder"] == ("Qwen2ForCausalLM" if samples else HALF)


@pytest.mark.slow
def test_a_run_is_really_in_halves(shards: Path) -> None:
    """What `dudi run` itself loads, told by the launcher's environment alone; R is a whole copy."""
    for rank in range(2):
        found = json.loads((shards / f"pipelines-{rank}.json").read_text())
        assert {stage: sorted(held) for stage, held in found.items()} == {
            "two-seqkd/2-seqkd": ["student"],
            "two-spin/2-spin-1": ["reference", "student"],
            "two-spin/4-spin-2": ["reference", "student"],
            "two-dudi/1-cold-start": ["student"],
            "two-dudi/2-dudi": ["reference", "student", "teacher"],
        }
        for held in found.values():
            for name in held.keys() - {"reference"}:
                assert_half(held[name])


@pytest.mark.slow
def test_halves_walk_in_step(shards: Path, more: Path) -> None:
    """As many micro-batches on both ranks, also where one has fewer of its own (see DDP), or no row with a term."""
    for case, what in (("tokens", "places"), ("dudi", "terms")):
        walks = [[step[what] for step in report["steps"]] for report in reports(shards, case)]
        assert all(len(a) == len(b) for a, b in zip(*walks, strict=True)) and walks[0] != walks[1]
    own = [[len(step["places"]) for step in report["steps"]] for report in reports(more, "tokens")]
    assert any(a < b for a, b in zip(*own, strict=True)) and any(a > b for a, b in zip(*own, strict=True))
    assert any([] in step["places"] for report in reports(shards, "tokens") for step in report["steps"])


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name, case in ddp.MORE.items() if not case.forced])
def test_ranks_sample_unlike_lengths(case: str, shards: Path, more: Path) -> None:
    """Ranks that decoded in step, on weights that are spread, would wait for each other forever."""
    for folder in (shards, more):
        steps = zip(*(report["steps"] for report in reports(folder, case)), strict=True)
        longest = [[max(map(len, step["tokens"].values()), default=0) for step in both] for both in steps]
        assert any(0 < a < b for a, b in longest) and any(a > b > 0 for a, b in longest)


@pytest.mark.slow
def test_a_checkpoint_of_halves_is_an_ordinary_one(shards: Path, tmp_path: Path) -> None:
    """Stopped on two processes under FSDP2, resumed in one: the same end as two that were never stopped."""
    shutil.copytree(shards / "resume" / "stopped", tmp_path / "run")
    straight = shards / "resume" / "straight"
    for step in (5, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}", ignore_errors=True)
    resumed = ddp.build(tmp_path / "run", ddp.RESUME)
    resume_stage(resumed)
    assert resumed.state.global_step == ddp.STEPS
    written = (load_file(run / "checkpoint-6" / "model.safetensors").keys() for run in (straight, tmp_path / "run"))
    assert len({tuple(sorted(names)) for names in written}) == 1, "tied weights once"
    end = AutoModelForCausalLM.from_pretrained(straight / "checkpoint-6", dtype=torch.float64)
    assert type(end).__name__ == "Qwen2ForCausalLM" and "distributed_config" not in end.config.to_dict()
    assert runs.furthest(end.state_dict(), resumed.student.state_dict()) < 1e-9
    state, other = (
        torch.load(run / "checkpoint-6/optimizer.pt", weights_only=True)["state"]
        for run in (straight, tmp_path / "run")
    )
    assert state.keys() == other.keys()
    for place, values in state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert values[name].shape == other[place][name].shape
            assert torch.allclose(values[name], other[place][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ddp.CASES)
def test_window_and_coin_are_the_same_function_everywhere(
    case: str, two: Path, alone: Callable[[str], Training]
) -> None:
    """Each row of a step on exactly one rank, each rank the same number of rows, all ranks the same signals."""
    steps = alone(case)[1]
    for single, *both in zip(steps, *(report["steps"] for report in reports(two, case)), strict=True):
        assert single["weight"] == [1.0] * len(single["rows"])
        trained = [r for step in both for r, w in zip(step["rows"], step["weight"], strict=True) if w]
        assert sorted(trained) == sorted(single["rows"])
        assert {len(step["rows"]) for step in both} == {-(-len(single["rows"]) // 2)}
        assert {step["epoch"] for step in both} == {single["epoch"]}
    assert steps[0]["rows"] != steps[3]["rows"], "another order in the second epoch"
    if case == "gkd":
        assert {tuple(s["signals"]) for s in steps} == {("off_policy",), ("on_policy",)}


@pytest.mark.parametrize("case", ddp.CASES)
def test_ragged_tail_is_filled_with_rows_of_weight_zero(case: str, two: Path) -> None:
    """Steps 3 and 6 have one row: the second rank has only a filler (its weight: `assert_really_two`)."""
    first, second = (report["steps"] for report in reports(two, case))
    assert all(second[k]["rows"] == first[k]["rows"] for k in (2, 5))


def test_a_rank_without_an_on_policy_term(two: Path) -> None:
    """Rows whose z is too long: a rank has the term where the other has none, and micro-batches with no term at all."""
    lopsided = {}
    for case in ("dudi", "sdft"):
        ranks = [report["steps"] for report in reports(two, case)]
        has = [[any("on_policy" in terms for terms in step["terms"]) for step in steps] for steps in ranks]
        lopsided[case] = sum(a != b for a, b in zip(*has, strict=True))
        assert lopsided[case] > 0
    nothing = [terms == [] for report in reports(two, "sdft") for step in report["steps"] for terms in step["terms"]]
    assert any(nothing) and not all(nothing)


def assert_same_run(here: Path, there: Path) -> None:
    """The same responses, token for token; the same metrics and weights."""
    assert [s.name for s in runs.stages(here)] == [s.name for s in runs.stages(there)]
    for a, b in zip(runs.stages(here), runs.stages(there), strict=True):
        for file in a.rglob("batch-*.jsonl"):
            assert (b / file.relative_to(a)).read_bytes() == file.read_bytes()
        if (a / "model").is_dir():
            for mine, theirs in zip(runs.metrics(a), runs.metrics(b), strict=True):
                assert_close(theirs, mine)
            assert runs.furthest(runs.weights(a), runs.weights(b)) < 1e-6
    assert json.loads((there / "environment.json").read_text())["processes"] == 2
    assert (there / "summary.json").is_file() and not list(there.rglob("training_args.bin"))


@pytest.mark.parametrize("k", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
def test_pipelines_with_sampled_responses(k: int, two: Path, pipeline: Callable[[int], Path]) -> None:
    """Stages shared by two processes."""
    assert_same_run(pipeline(k), Path(ddp.recipes(two, "two")[k].output))


@pytest.mark.slow
@pytest.mark.parametrize("k", range(3))
def test_pipelines_of_halves(k: int, shards: Path, pipeline: Callable[[int], Path]) -> None:
    """Student, and DuDi's teacher, spread over two processes."""
    assert_same_run(pipeline(k), Path(ddp.recipes(shards, "two")[k].output))


def test_resume_on_two_processes(two: Path) -> None:
    """Weights and moving average are compared by the worker; the metrics here."""
    straight, stopped = ((two / "resume" / name / "metrics.jsonl").read_bytes() for name in ("straight", "stopped"))
    assert straight == stopped and len(straight.splitlines()) == 2


def test_resume_on_another_number_of_processes(two: Path, tmp_path: Path) -> None:
    """Stopped on two processes, resumed in one from the checkpoint of step 4: the end of the straight run."""
    shutil.copytree(two / "resume" / "stopped", tmp_path / "run")
    for step in (5, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}", ignore_errors=True)
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    resumed = ddp.build(tmp_path / "run", ddp.RESUME)
    resume_stage(resumed)
    assert resumed.state.global_step == ddp.STEPS
    here, there = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", two / "resume" / "straight")
    )
    assert len(here) == len(there) == 2
    for mine, theirs in zip(here, there, strict=True):
        assert_close(mine, theirs)
    end = load_file(two / "resume" / "straight" / "checkpoint-6" / "model.safetensors")
    assert runs.furthest(end, {name: resumed.student.get_parameter(name).detach() for name in end}) < 1e-6


def test_coin_is_a_function_of_seed_and_step() -> None:
    """No state: asked in any order, twice, by a method built anew; and it falls both ways as often as it should."""
    sides = [build_method({"name": "gkd", "lam": 0.3}).active(7, step)[0].name for step in range(2000)]
    method = build_method({"name": "gkd", "lam": 0.3})
    assert [method.active(7, step)[0].name for step in reversed(range(2000))] == sides[::-1]
    share = sides.count("on_policy") / 2000
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert sides != [method.active(8, step)[0].name for step in range(2000)]

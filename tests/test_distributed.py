"""Two gloo processes are one process: losses, gradient norms, metrics by language, weights. Started with torchrun.

DDP with the methods that differ most in the fast tests; the other methods, and all under FSDP2, in the slow ones.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from workers import common, ddp, fsdp

from dudi.methods import build_method
from dudi.train import resume_stage, run


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_two(script: str, folder: Path, *arguments: str) -> Path:
    """Run a worker in two processes; what they left."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launcher += ["--master-port", str(free_port())]
    status, text = common.start(script, str(folder), *arguments, launcher=launcher, timeout=600)
    assert status == 0, text[-6000:]
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: all cases in one launch."""
    folder = tmp_path_factory.mktemp("two")
    ddp.recipes(folder, "two")  # models and rows are made once
    return start_two("ddp.py", folder)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of the other methods."""
    return start_two("ddp.py", tmp_path_factory.mktemp("more"), "more")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that hold half of the weights each."""
    return start_two("fsdp.py", tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where this process has trained a case."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def train(name: str) -> Path:
        ddp.train(folder / name, fsdp.CASES[name])
        return folder / name

    return train


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[dict[str, Any]]]]:
    """The same cases in this process."""
    folder = tmp_path_factory.mktemp("one")
    return {name: (folder / name, ddp.train(folder / name, case)) for name, case in ddp.CASES.items()}


def reports(two: Path, case: str) -> list[dict[str, Any]]:
    return [json.loads((two / f"{case}-{rank}.json").read_text()) for rank in range(2)]


def assert_close(found: Any, wanted: Any, where: str = "") -> None:
    """Two lines of metrics, number by number."""
    assert type(found) is type(wanted), where
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_close(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-6), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("case", ddp.CASES)
def test_really_two_processes(case: str, two: Path) -> None:
    for report in reports(two, case):
        assert report["world"] == 2 and report["backend"] == "gloo"
        assert len(report["steps"]) == ddp.STEPS
        for step in report["steps"]:
            assert step["world"] == 2 and step["model"] == "DistributedDataParallel"


def assert_same_training(alone: Path, together: Path, case: str) -> None:
    """Metrics of every step, by signal and language, and the weights after the last one."""
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
    assert common.identical(*weights), "ranks have drifted apart"
    assert common.furthest(weights[0], load_file(alone / "weights-0.safetensors")) < 1e-6


@pytest.mark.parametrize("case", ddp.CASES)
def test_two_processes_are_one(case: str, two: Path, one: dict[str, tuple[Path, list[dict[str, Any]]]]) -> None:
    assert_same_training(one[case][0], two / case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ddp.MORE)
def test_two_processes_are_one_for_the_other_methods(case: str, more: Path, alone: Callable[[str], Path]) -> None:
    for report in reports(more, case):
        assert report["world"] == 2 and {step["model"] for step in report["steps"]} == {"DistributedDataParallel"}
    assert_same_training(alone(case), more / case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", fsdp.CASES)
def test_two_halves_are_one(case: str, shards: Path, alone: Callable[[str], Path]) -> None:
    assert_same_training(alone(case), shards / case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", fsdp.CASES)
def test_really_two_halves(case: str, shards: Path) -> None:
    """Student and teacher: DTensor parameters, about half the bytes on each rank, and all of a copy that decodes.

    (TRL's GKD, GOLD and Distillation neither place nor shard their teacher under FSDP.)
    """
    for report in reports(shards, case):
        assert report["world"] == 2 and report["backend"] == "gloo" and len(report["steps"]) == ddp.STEPS
        judged = case not in ("sft", "dft", "spin", "sdft", "checkpointing")
        assert report["held"].keys() == ({"student", "teacher"} if judged else {"student"})
        for held in report["held"].values():
            assert held["sharded"] and held["class"] == "FSDPQwen2ForCausalLM"
            assert 0.5 * held["of"] <= held["bytes"] < 0.52 * held["of"]
        samples = case not in ("sft", "dft", "seqkd")
        assert report["decoder"] == ("Qwen2ForCausalLM" if samples else "FSDPQwen2ForCausalLM")


@pytest.mark.slow
def test_halves_walk_in_step(shards: Path) -> None:
    """As many micro-batches on both ranks, also where one has no row with a term; it had fewer terms there."""
    ranks = [report["steps"] for report in reports(shards, "dudi")]
    walks = [[step["terms"] for step in steps] for steps in ranks]
    assert all(len(a) == len(b) for a, b in zip(*walks, strict=True)) and walks[0] != walks[1]


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
    assert common.furthest(end.state_dict(), resumed.student.state_dict()) < 1e-9
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
    case: str, two: Path, one: dict[str, tuple[Path, list[dict[str, Any]]]]
) -> None:
    """Each row of a step on exactly one rank, each rank the same number of rows, all ranks the same signals."""
    ranks = [report["steps"] for report in reports(two, case)]
    for single, *both in zip(one[case][1], *ranks, strict=True):
        assert single["weight"] == [1.0] * len(single["rows"])
        trained = [r for step in both for r, w in zip(step["rows"], step["weight"], strict=True) if w]
        assert sorted(trained) == sorted(single["rows"])
        assert len({len(step["rows"]) for step in both}) == 1
        assert {tuple(step["signals"]) for step in both} == {tuple(single["signals"])}
        assert {step["epoch"] for step in both} == {single["epoch"]}
    for epoch in range(2):
        seen = [r for s in one[case][1] if s["epoch"] == epoch for r in s["rows"]]
        assert sorted(seen) == list(range(9))
    assert one[case][1][0]["rows"] != one[case][1][3]["rows"], "another order in the second epoch"
    if case == "gkd":
        assert {tuple(s["signals"]) for s in one[case][1]} == {("off_policy",), ("on_policy",)}


@pytest.mark.parametrize("case", ddp.CASES)
def test_ragged_tail_is_filled_with_rows_of_weight_zero(case: str, two: Path) -> None:
    """Steps 3 and 6 have one row: the second rank has only a filler. No row is trained twice."""
    first, second = (report["steps"] for report in reports(two, case))
    for number in (2, 5):
        assert first[number]["weight"] == [1.0] and second[number]["weight"] == [0.0]
        assert second[number]["rows"] == first[number]["rows"]
    assert all(step["weight"] == [1.0, 1.0] for k in (0, 1, 3, 4) for step in (first[k], second[k]))


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


@pytest.mark.parametrize("k", range(3))
def test_pipelines_with_sampled_responses(k: int, two: Path, tmp_path: Path) -> None:
    """Stages shared by two processes: the same responses, token for token; the same metrics and weights."""
    recipe = ddp.recipes(tmp_path, "one")[k]
    here, there = run(recipe, say=lambda *_: None), Path(ddp.recipes(two, "two")[k].output)
    assert [s.name for s in common.stages(here)] == [s.name for s in common.stages(there)]
    for a, b in zip(common.stages(here), common.stages(there), strict=True):
        for file in a.rglob("batch-*.jsonl"):
            assert (b / file.relative_to(a)).read_bytes() == file.read_bytes()
        if (a / "model").is_dir():
            for mine, theirs in zip(common.metrics(a), common.metrics(b), strict=True):
                assert_close(theirs, mine)
            assert common.furthest(common.weights(a), common.weights(b)) < 1e-6
    assert json.loads((there / "environment.json").read_text())["processes"] == 2
    assert (there / "summary.json").is_file() and not list(there.rglob("training_args.bin"))


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
    assert common.furthest(end, {name: resumed.student.get_parameter(name).detach() for name in end}) < 1e-6


def test_coin_is_a_function_of_seed_and_step() -> None:
    """No state: asked in any order, twice, by a method built anew; and it falls both ways as often as it should."""
    sides = [build_method({"name": "gkd", "lam": 0.3}).active(7, step)[0].name for step in range(2000)]
    method = build_method({"name": "gkd", "lam": 0.3})
    assert [method.active(7, step)[0].name for step in reversed(range(2000))] == sides[::-1]
    share = sides.count("on_policy") / 2000
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5
    assert sides != [method.active(8, step)[0].name for step in range(2000)]

"""The plan of a run: which stages, from which weights, against which reference, on whose responses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from dudi.methods import Response
from dudi.recipe.read import parse_recipe
from dudi.recipe.schema import Recipe
from dudi.recipe.stages import Generate, Train, folder_name, plan


def recipe(method: dict[str, Any], cold: dict[str, Any] | None = None, **more: Any) -> Recipe:
    table = {
        "name": "r",
        "method": method,
        "models": {"student": "s", "teacher": "t"},
        "data": {"source": "builtin"},
        **more,
    }
    if cold is not None:
        table["cold_start"] = cold
    return parse_recipe(table, "test")


def lines(r: Recipe) -> list[str]:
    """Each stage in one line, as the cases below write it."""
    found = []
    for stage in plan(r):
        if isinstance(stage, Generate):
            found.append(f"{stage.name}: {stage.writer} writes {stage.response.value} #{stage.number}")
        else:
            found.append(
                f"{stage.name}: {stage.method.name} from {stage.start}"
                + (f" against {stage.reference}" if stage.reference else "")
                + (f" on {stage.responses}" if stage.responses else "")
            )
    return found


COLD = "cold-start: sft from student"
NONE, SEQKD, DFT = {"method": {"name": "none"}}, {"method": {"name": "seqkd"}}, {"method": {"name": "dft"}}
DONE = {"checkpoint": "runs/x/1-cold-start/model"}
PATH = DONE["checkpoint"]
CASES: list[tuple[dict[str, Any], dict[str, Any] | None, list[str]]] = [
    # from the base student, in one stage, whatever [cold_start] says
    ({"name": "sft"}, None, ["sft: sft from student"]),
    ({"name": "dft"}, None, ["dft: dft from student"]),
    ({"name": "sft"}, DONE, ["sft: sft from student"]),
    ({"name": "sft"}, SEQKD, ["sft: sft from student"]),
    # from a cold start
    ({"name": "sdft"}, None, [COLD, "sdft: sdft from cold-start"]),
    ({"name": "gkd"}, None, [COLD, "gkd: gkd from cold-start"]),
    ({"name": "gkd"}, NONE, ["gkd: gkd from student"]),
    ({"name": "dudi"}, None, [COLD, "dudi: dudi from cold-start against cold-start"]),
    ({"name": "dudi"}, NONE, ["dudi: dudi from student against student"]),
    ({"name": "dudi"}, DONE, [f"dudi: dudi from {PATH} against {PATH}"]),
    ({"name": "dudi"}, DFT, ["cold-start: dft from student", "dudi: dudi from cold-start against cold-start"]),
    ({"name": "dudi", "without": ["sequence"]}, None, [COLD, "dudi: dudi from cold-start"]),
    # a cold start on the teacher's responses: they are written first
    (
        {"name": "dudi"},
        SEQKD,
        [
            "cold-start-responses: teacher writes teacher #0",
            "cold-start: seqkd from student on cold-start-responses",
            "dudi: dudi from cold-start against cold-start",
        ],
    ),
    # the teacher writes after the cold start, from the same prompts
    (
        {"name": "seqkd"},
        None,
        [COLD, "seqkd-responses: teacher writes teacher #0", "seqkd: seqkd from cold-start on seqkd-responses"],
    ),
    (
        {"name": "seqkd", "variant": "jsd"},
        NONE,
        ["seqkd-responses: teacher writes teacher #0", "seqkd: seqkd from student on seqkd-responses"],
    ),
    # SPIN: each iteration's start writes y', and is the reference; both move on
    (
        {"name": "spin"},
        None,
        [
            COLD,
            "spin-1-responses: cold-start writes opponent #0",
            "spin-1: spin from cold-start against cold-start on spin-1-responses",
            "spin-2-responses: spin-1 writes opponent #1",
            "spin-2: spin from spin-1 against spin-1 on spin-2-responses",
            "spin-3-responses: spin-2 writes opponent #2",
            "spin-3: spin from spin-2 against spin-2 on spin-3-responses",
        ],
    ),
    (
        {"name": "spin", "iterations": 1},
        DONE,
        [
            f"spin-responses: {PATH} writes opponent #0",
            f"spin: spin from {PATH} against {PATH} on spin-responses",
        ],
    ),
    ({"name": "spin", "variant": "online"}, None, [COLD, "spin: spin from cold-start against cold-start"]),
    ({"name": "spin", "variant": "online"}, NONE, ["spin: spin from student against student"]),
]


@pytest.mark.parametrize("method, cold, expected", CASES, ids=lambda case: str(case)[:50])
def test_plan(method: dict[str, Any], cold: dict[str, Any] | None, expected: list[str]) -> None:
    assert lines(recipe(method, cold)) == expected


def test_each_stage_is_trained_as_its_own_table_says() -> None:
    r = recipe({"name": "spin"}, {"training": {"epochs": 7.0}}, training={"epochs": 1.0, "lr": 1e-4})
    trainings = {s.name: (s.training.epochs, s.training.lr) for s in plan(r) if isinstance(s, Train)}
    assert trainings == {"cold-start": (7.0, 1e-4)} | dict.fromkeys(("spin-1", "spin-2", "spin-3"), (1.0, 1e-4))


def test_folders_are_numbered_in_order() -> None:
    stages = plan(recipe({"name": "spin", "iterations": 2}))
    folders = [folder_name(stages, s.name) for s in stages]
    assert folders == ["1-cold-start", "2-spin-1-responses", "3-spin-1", "4-spin-2-responses", "5-spin-2"]
    assert len({s.name for s in stages}) == len(stages)


@pytest.mark.parametrize("method", ["spin", "seqkd"])
def test_a_training_stands_right_after_the_responses_it_reads(method: str) -> None:
    stages = plan(recipe({"name": method}))
    for before, stage in pairwise(stages):
        if isinstance(before, Generate):
            assert isinstance(stage, Train) and stage.responses == before.name
            assert stage.method.stored is before.response
            assert before.response is (Response.TEACHER if method == "seqkd" else Response.OPPONENT)
    starts = {s.start for s in stages if isinstance(s, Train)} - {"student"}
    assert starts <= {s.name for s in stages}

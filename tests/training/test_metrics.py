"""Sums, means by language, JSON lines and times: against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dudi.files import append_line, cut_back, read_lines
from dudi.loss import signals
from dudi.loss.head import Head
from dudi.loss.objective import Objective
from dudi.loss.scores import Block, Reading, Scores
from dudi.loss.signals import Outcome
from dudi.methods import build_method
from dudi.signals import SequenceSignal, View, views
from dudi.training.metrics import MEASURES, Meter, record
from dudi.training.phases import Phases

NOTHING = Reading(torch.zeros(1, 1, dtype=torch.long), torch.zeros(0, dtype=torch.long))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def block(
    view: View, row: list[int], rows: int, weight: list[float] | None = None, position: list[int] | None = None
) -> Block:
    """A block whose tokens belong to the given micro-batch rows."""
    n = len(row)
    return Block(
        view,
        NOTHING,
        None,
        torch.zeros(n, dtype=torch.long),
        torch.tensor(row),
        torch.tensor(position or list(range(n))),
        tensor(*(weight or [1.0] * n)),
        rows,
    )


DUDI = build_method({"name": "dudi"})
GOLD, Y_PRIME, Y_TILDE = views(DUDI.signals)
LANGUAGES = ("my", "id", "th")


def token(value: list[float], mask: list[float], of: Block) -> Outcome:
    return Outcome(tensor(*value), tensor(*mask), of.row, of.rows)


def row(value: list[float], margin: list[float], mask: list[float]) -> Outcome:
    """One value a row; its gradient is small where the margin is 5."""
    extra = {"margin": tensor(*margin), "saturated": (tensor(*margin) > 4).double()}
    return Outcome(tensor(*value), tensor(*mask), torch.arange(len(value)), len(value), extra)


def first() -> Objective:
    """Two rows, id and my: off-policy tokens 1 2 | 4, on-policy 10 (20 masked) | 30; margins 0 and 5."""
    off, on = block(GOLD, [0, 0, 1], 2), block(Y_TILDE, [0, 0, 1], 2)
    outcomes = {
        "off_policy": token([1, 2, 4], [1, 1, 1], off),
        "on_policy": token([10, 20, 30], [1, 0, 1], on),
        "sequence": row([0.5, 0.25], [0.0, 5.0], [1, 1]),
    }
    measures = {name: tensor(k, k + 1, k + 3) for k, name in enumerate(MEASURES)}
    return Objective(tensor(0.0).sum(), outcomes, {Y_TILDE: (on, measures)})


def second() -> Objective:
    """One row in id, and one in th that only fills up: it counts nothing."""
    off = block(GOLD, [0, 1, 1], 2, [1, 0, 0])
    outcomes = {
        "off_policy": token([8, 100, 100], [1, 0, 0], off),
        "sequence": row([0.75, 9], [-1, -9], [1, 0]),
    }
    return Objective(tensor(0.0).sum(), outcomes, {})


ROLLOUTS: list[tuple[str, float, int | None, bool]] = [
    ("id", 1, 8, False),
    ("id", 1, 4, True),
    ("id", 0, 99, True),  # only fills up the batch
    ("my", 1, 6, False),
    ("my", 1, None, False),  # p_z or z too long
    ("my", 1, None, False),
    ("th", 1, None, False),
]


@pytest.fixture
def meter() -> Meter:
    made = Meter(DUDI, LANGUAGES)
    made.add_objective(first(), ["id", "my"])
    made.add_objective(second(), ["id", "th"])
    for key, value in (("loss", 3.0), ("steps", 1.0), ("grad_norm", 4.0), ("loss", 5.0), ("steps", 1.0)):
        made.add(key, value)
    for language, weight, length, finished in ROLLOUTS:
        made.add_rollout(Y_TILDE, language, weight, length, finished)
    return made


def test_sums_by_language(meter: Meter) -> None:
    wanted = {
        "signal/off_policy/id/loss": 1 + 2 + 8,
        "signal/off_policy/id/count": 3,
        "signal/off_policy/my/loss": 4,
        "signal/off_policy/th/loss": 0,
        "signal/off_policy/th/count": 0,
        "signal/on_policy/id/loss": 10,  # a masked token is not counted
        "signal/on_policy/id/count": 1,
        "signal/on_policy/my/loss": 30,
        "signal/sequence/id/loss": 0.5 + 0.75,
        "signal/sequence/id/count": 2,
        "signal/sequence/id/margin": -1,
        "signal/sequence/id/saturated": 0,
        "signal/sequence/my/margin": 5,
        "signal/sequence/my/saturated": 1,  # sigmoid(-5) = 0.0067, below 0.05
        "measure/y_tilde/id/count": 2,
        f"measure/y_tilde/id/{MEASURES[1]}": 1 + 2,
        f"measure/y_tilde/my/{MEASURES[1]}": 4,
        "measure/y/id/count": 0,
        "loss": 8,
    }
    assert {key: meter.sums[key] for key in wanted} == wanted


def test_a_key_outside_the_grid_is_an_error(meter: Meter) -> None:
    with pytest.raises(KeyError):
        meter.add("signal/off_policy/vi/loss", 1.0)
    with pytest.raises(ValueError):
        meter.add_objective(first(), ["id", "vi"])


@pytest.mark.parametrize("margin, saturated", [(0.0, 0), (2.94, 0), (2.95, 1), (-50.0, 0), (50.0, 1)])
def test_saturation_is_a_small_gradient(margin: float, saturated: int) -> None:
    """1 / (1 + e^2.9444) = 0.05."""
    signal = next(s for s in DUDI.signals if isinstance(s, SequenceSignal))
    blocks = {view: block(view, [0], 1) for view in signal.views}
    log_s = {signal.winner: tensor(margin / signal.beta), signal.loser: tensor(0.0)}
    reference = {view: tensor(0.0) for view in signal.views}
    head = Head(torch.zeros(1, 1), None, 1)
    whole = signals.share(signal, Scores(blocks, {}, head, {}, None, reference), 1.0).whole
    assert whole is not None
    outcome = whole(log_s).outcome
    assert float(outcome.extra["margin"]) == pytest.approx(margin)
    assert float(outcome.extra["saturated"]) == saturated


def test_means(meter: Meter) -> None:
    found = record(meter.sums, DUDI.signals)
    assert (found["loss"], found["grad_norm"]) == (4.0, 2.0)
    off = found["signal"]["off_policy"]
    assert off == {
        "loss": 15 / 4,
        "count": 4,
        "weight": 0.5,
        "by_language": {"id": {"loss": 11 / 3, "count": 3}, "my": {"loss": 4.0, "count": 1}},
    }
    assert found["signal"]["on_policy"]["loss"] == 20
    assert found["signal"]["sequence"] == {
        "loss": 1.5 / 3,
        "margin": 4 / 3,
        "saturated": 1 / 3,
        "count": 3,
        "weight": 0.1,
        "by_language": {
            "id": {"loss": 0.625, "margin": -0.5, "saturated": 0.0, "count": 2},
            "my": {"loss": 0.25, "margin": 5.0, "saturated": 1.0, "count": 1},
        },
    }
    assert found["rollout"] == {
        "y_tilde": {
            "length": 6.0,
            "share_cut": 2 / 3,
            "eos_rate": 1 / 3,
            "rows": 3,
            "dropped": 3,
            "by_language": {
                "id": {"length": 6.0, "share_cut": 0.5, "eos_rate": 0.5, "rows": 2},
                "my": {"length": 6.0, "share_cut": 1.0, "eos_rate": 0.0, "rows": 1, "dropped": 2},
                "th": {"dropped": 1},
            },
        }
    }, "without data a quantity is absent, and y_prime with it"
    assert set(found["measure"]) == {"y_tilde"}
    assert found["measure"]["y_tilde"]["by_language"]["id"][MEASURES[0]] == 0.5
    json.dumps(found, allow_nan=False)


def test_an_empty_interval_divides_by_nothing() -> None:
    assert record(Meter(DUDI, LANGUAGES).sums, DUDI.signals) == {"loss": 0.0, "grad_norm": 0.0}


def test_a_signal_that_no_step_read_is_absent() -> None:
    gkd = build_method({"name": "gkd"})
    made = Meter(gkd, LANGUAGES)
    made.add_objective(Objective(tensor(0.0).sum(), {"off_policy": token([1], [1], block(GOLD, [0], 1))}, {}), ["th"])
    assert list(record(made.sums, gkd.signals)["signal"]) == ["off_policy"]


@pytest.mark.parametrize("name", ["sft", "spin", "sdft", "seqkd", "gkd", "dudi"])
def test_the_grid_is_the_same_whatever_is_seen(name: str) -> None:
    """Ranks add theirs up by place, so keys must not come from the data."""
    method = build_method({"name": name})
    grid = list(Meter(method, LANGUAGES).sums)
    assert grid == list(Meter(method, LANGUAGES[::-1]).sums)
    names = {key.split("/")[1] for key in grid if key.startswith("signal/")}
    assert names == {s.name for s in method.signals}
    assert any(key.startswith("rollout/") for key in grid) is any(v.response.sampled for v in views(method.signals))
    assert all(("margin" in key) <= ("sequence" in key) for key in grid)


def test_sums_go_back_to_their_processes_or_all_to_the_first(meter: Meter) -> None:
    kept = [dict.fromkeys(meter.sums, value) for value in (0.1, 0.2, 0.3)]

    def loaded(rank: int, ranks: int) -> set[float]:
        meter.load(kept, rank, ranks)
        return set(meter.sums.values())

    assert [loaded(rank, 3) for rank in range(3)] == [{0.1}, {0.2}, {0.3}]
    assert [loaded(rank, 2) for rank in range(2)] == [{0.1 + 0.2 + 0.3}, {0.0}]
    assert loaded(0, 1) == {0.1 + 0.2 + 0.3}


def test_clear_keeps_the_grid(meter: Meter) -> None:
    keys = list(meter.sums)
    meter.clear()
    assert list(meter.sums) == keys and set(meter.sums.values()) == {0.0}


def test_one_process_has_nothing_to_collapse(meter: Meter) -> None:
    before = dict(meter.sums)
    meter.total()
    assert meter.sums == before


# ── JSON lines ───────────────────────────────────────────────────────────────────────────────────────────────────────
def lines(path: Path, steps: range) -> None:
    for step in steps:
        append_line(path, {"step": step, "loss": step / 3, "text": "မြန်မာ"})


def test_lines_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_lines(path) == []
    lines(path, range(1, 4))
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    assert read_lines(path)[1] == {"step": 2, "loss": 2 / 3, "text": "မြန်မာ"}
    assert "မြန်မာ" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4}', "", "\n", "{"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "m.jsonl"
    lines(path, range(1, 4))
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    cut_back(path, 3)
    append_line(path, {"step": 4})
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4], "nothing is glued to the torn line"


@pytest.mark.parametrize("step, kept", [(0, []), (2, [1, 2]), (3, [1, 2, 3]), (9, [1, 2, 3])])
def test_cut_back(tmp_path: Path, step: int, kept: list[int]) -> None:
    path = tmp_path / "m.jsonl"
    lines(path, range(1, 4))
    whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
    cut_back(path, step)
    assert path.read_text(encoding="utf-8") == "".join(whole[: len(kept)]), "lines that stay are the same bytes"
    assert list(tmp_path.iterdir()) == [path]


def test_cutting_back_nothing_makes_no_file(tmp_path: Path) -> None:
    cut_back(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that goes only when told."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def tick(seconds: float) -> None:
        now[0] += seconds

    return tick


def test_phases_are_exclusive(clock: Any) -> None:
    phases = Phases()
    clock(50)  # in no phase: charged to nobody
    with phases("student"):
        assert phases.now == "student"
        clock(1)
        with phases("teacher"):
            assert phases.now == "teacher"
            clock(10)
            with phases("student"):
                clock(100)
        clock(2)
    assert phases.now == ""
    clock(50)
    with phases("backward"):
        clock(0.5)
    assert phases.take() == {"student": 103.0, "teacher": 10.0, "backward": 0.5}
    assert phases.take() == {}


def test_an_error_within_a_phase_ends_it(clock: Any) -> None:
    phases = Phases()
    with pytest.raises(ZeroDivisionError), phases("rollout"), phases("teacher"):
        clock(2)
        _ = 1 / 0
    assert phases.now == "" and phases.take() == {"teacher": 2.0, "rollout": 0.0}


def test_real_times_add_up_to_the_wall_clock() -> None:
    phases, start = Phases(), time.perf_counter()
    for _ in range(20):
        with phases("a"), phases("b"):
            math.sqrt(2)
    assert 0 <= sum(phases.take().values()) <= time.perf_counter() - start

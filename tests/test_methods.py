"""The methods as signals: the paper's Table 1, every weight, loss and view, the coin; written out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dudi.errors import DudiError
from dudi.methods import (
    METHODS,
    TABLE_1_COLUMNS,
    Loss,
    LossOn,
    Method,
    Mode,
    Response,
    SequenceSignal,
    Teacher,
    TokenSignal,
    View,
    build_method,
    method_from_name,
    table_1,
    views,
)

# Typed in from the paper: method, teacher, off-policy token, on-policy token, sequence, verbalizer.
TABLE_1 = """
SFT   | -      | yes | -   | -   | -
DFT   | -      | yes | -   | -   | -
SPIN  | -      | -   | -   | yes | -
SDFT  | Self   | -   | yes | -   | English
SeqKD | Larger | yes | -   | -   | -
GKD   | Larger | yes | yes | -   | -
DuDi  | Larger | yes | yes | yes | Cross-lingual
"""


def test_table_1_is_the_papers() -> None:
    printed = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE_1.strip().splitlines()]
    assert table_1() == printed
    assert all(len(row) == len(TABLE_1_COLUMNS) for row in printed)


# A signal in one line: name, weight, loss, response, verbalizer, then what is out of the ordinary.
def line(signal: TokenSignal | SequenceSignal) -> str:
    """A signal as the expectations below write it."""
    if isinstance(signal, SequenceSignal):
        assert (signal.winner, signal.loser.verbalizer) == (View(Response.GOLD), Mode.NONE)
        return f"{signal.name} {signal.weight:g} spin {signal.loser.response} beta={signal.beta:g}"
    parts = [signal.name, f"{signal.weight:g}", signal.loss.value, signal.view.response.value]
    parts.append(signal.view.verbalizer.value)
    if signal.loss is Loss.JSD:
        parts.append(f"beta={signal.arguments['beta']:g}")
    if signal.skip_tokens:
        parts.append(f"skip={signal.skip_tokens}")
    if signal.coin is not None:
        parts.append(f"coin={signal.coin}")
    if not signal.view.include_english:
        parts.append("no-english")
    if signal.view.loss_on is not LossOn.LAST:
        parts.append(signal.view.loss_on.value)
    return " ".join(parts)


SEQ, OFF, ON = (
    "sequence 0.1 spin y_prime beta=0.1",
    "off_policy 0.5 reverse_kl y none",
    "on_policy 0.5 reverse_kl y_tilde",
)
CROSS = f"{ON} crosslingual"
COIN = ["off_policy 1 jsd y none beta=0.5 coin=False", "on_policy 1 jsd y_tilde none beta=0.5 coin=True"]
SUM = ["off_policy 0.5 jsd y none beta=0.5", "on_policy 0.5 jsd y_tilde none beta=0.5"]
SDFT = "on_policy 1 forward_kl y_tilde english skip=3"
CASES: list[tuple[dict[str, Any], list[str], Teacher]] = [
    ({"name": "sft"}, ["off_policy 1 nll y none"], Teacher.NONE),
    ({"name": "sft", "loss_on": "all_assistant"}, ["off_policy 1 nll y none all_assistant"], Teacher.NONE),
    ({"name": "dft"}, ["off_policy 1 dft y none"], Teacher.NONE),
    ({"name": "dft", "loss_on": "all_assistant"}, ["off_policy 1 dft y none all_assistant"], Teacher.NONE),
    ({"name": "spin"}, ["sequence 1 spin opponent beta=0.1"], Teacher.NONE),
    ({"name": "spin", "variant": "online"}, ["sequence 1 spin y_prime beta=0.1"], Teacher.NONE),
    ({"name": "spin", "spin_beta": 0.5}, ["sequence 1 spin opponent beta=0.5"], Teacher.NONE),
    ({"name": "sdft"}, [SDFT], Teacher.EMA),
    ({"name": "sdft", "variant": "reverse"}, [SDFT.replace("forward", "reverse")], Teacher.EMA),
    ({"name": "sdft", "skip_tokens": 0, "verbalizer": "none"}, ["on_policy 1 forward_kl y_tilde none"], Teacher.EMA),
    ({"name": "seqkd"}, ["off_policy 1 nll teacher none"], Teacher.LARGER),
    ({"name": "seqkd", "variant": "jsd"}, ["off_policy 1 jsd teacher none beta=0.5"], Teacher.LARGER),
    ({"name": "gkd"}, COIN, Teacher.LARGER),
    ({"name": "gkd", "variant": "sum"}, SUM, Teacher.LARGER),
    ({"name": "gkd", "variant": "sum", "lam": 0.0}, ["off_policy 1 jsd y none beta=0.5"], Teacher.LARGER),
    ({"name": "gkd", "variant": "sum", "lam": 1.0}, ["on_policy 1 jsd y_tilde none beta=0.5"], Teacher.LARGER),
    (
        {"name": "gkd", "divergence": "forward_kl"},
        [c.replace("jsd", "forward_kl").replace(" beta=0.5", "") for c in COIN],
        Teacher.LARGER,
    ),
    ({"name": "gkd", "jsd_beta": 0.9}, [c.replace("beta=0.5", "beta=0.9") for c in COIN], Teacher.LARGER),
    ({"name": "dudi"}, [SEQ, OFF, CROSS], Teacher.LARGER),
    ({"name": "dudi", "verbalizer": "none"}, [SEQ, OFF, f"{ON} none"], Teacher.LARGER),
    ({"name": "dudi", "verbalizer": "english"}, [SEQ, OFF, f"{ON} english"], Teacher.LARGER),
    ({"name": "dudi", "verbalizer": "multilingual"}, [SEQ, OFF, f"{ON} multilingual"], Teacher.LARGER),
    ({"name": "dudi", "verbalizer": "mix"}, [SEQ, OFF, f"{ON} mix"], Teacher.LARGER),
    ({"name": "dudi", "include_english": False}, [SEQ, OFF, f"{CROSS} no-english"], Teacher.LARGER),
    (
        {"name": "dudi", "divergence": "forward_kl"},
        [SEQ, OFF.replace("reverse", "forward"), CROSS.replace("reverse", "forward")],
        Teacher.LARGER,
    ),
    (
        {"name": "dudi", "divergence": "jsd", "jsd_beta": 0.3},
        [SEQ, "off_policy 0.5 jsd y none beta=0.3", "on_policy 0.5 jsd y_tilde crosslingual beta=0.3"],
        Teacher.LARGER,
    ),
    (
        {"name": "dudi", "alpha": 0.2, "lam": 0.25, "spin_beta": 0.5},
        ["sequence 0.2 spin y_prime beta=0.5", OFF.replace("0.5", "0.75"), CROSS.replace("0.5", "0.25")],
        Teacher.LARGER,
    ),
    # an ablation drops its term and leaves the other weights as they are
    ({"name": "dudi", "without": ["sequence"]}, [OFF, CROSS], Teacher.LARGER),
    ({"name": "dudi", "without": ["off_policy"]}, [SEQ, CROSS], Teacher.LARGER),
    ({"name": "dudi", "without": ["on_policy"]}, [SEQ, OFF], Teacher.LARGER),
    ({"name": "dudi", "without": ["on_policy", "off_policy"]}, [SEQ], Teacher.NONE),
    # a signal of weight zero is not computed
    ({"name": "dudi", "alpha": 0}, [OFF, CROSS], Teacher.LARGER),
    ({"name": "dudi", "lam": 0}, [SEQ, OFF.replace("0.5", "1")], Teacher.LARGER),
    ({"name": "dudi", "lam": 1}, [SEQ, CROSS.replace("0.5", "1")], Teacher.LARGER),
]


@pytest.mark.parametrize("table, expected, teacher", CASES, ids=lambda case: str(case)[:60] if case else "")
def test_signals(table: dict[str, Any], expected: list[str], teacher: Teacher) -> None:
    method = build_method(table)
    assert [line(s) for s in method.signals] == expected
    assert method.teacher is teacher
    assert method.name == table["name"]


# method, starts from the cold start, R, larger teacher, EMA rate, iterations, coin, stored response
PROPERTIES = [
    ({"name": "sft"}, False, False, False, 0.0, 1, None, None),
    ({"name": "dft"}, False, False, False, 0.0, 1, None, None),
    ({"name": "spin"}, True, True, False, 0.0, 3, None, Response.OPPONENT),
    ({"name": "spin", "iterations": 4}, True, True, False, 0.0, 4, None, Response.OPPONENT),
    ({"name": "spin", "variant": "online", "iterations": 4}, True, True, False, 0.0, 1, None, None),
    ({"name": "sdft"}, True, False, False, 0.01, 1, None, None),
    ({"name": "sdft", "ema_rate": 0.5}, True, False, False, 0.5, 1, None, None),
    ({"name": "seqkd"}, True, False, True, 0.0, 1, None, Response.TEACHER),
    ({"name": "gkd"}, True, False, True, 0.0, 1, 0.5, None),
    ({"name": "gkd", "variant": "sum"}, True, False, True, 0.0, 1, None, None),
    ({"name": "dudi"}, True, True, True, 0.0, 1, None, None),
    ({"name": "dudi", "without": ["sequence"]}, True, False, True, 0.0, 1, None, None),
]


@pytest.mark.parametrize("table, cold, reference, larger, ema, iterations, coin, stored", PROPERTIES, ids=str)
def test_properties(
    table: dict[str, Any],
    cold: bool,
    reference: bool,
    larger: bool,
    ema: float,
    iterations: int,
    coin: float | None,
    stored: Response | None,
) -> None:
    m = build_method(table)
    found = (m.cold_start, m.needs_reference, m.needs_larger_teacher, m.ema_rate, m.iterations, m.coin, m.stored)
    assert found == (cold, reference, larger, ema, iterations, coin, stored)


def test_variants_are_named() -> None:
    names = {
        ("sft",): "last",
        ("spin",): "original",
        ("sdft",): "official",
        ("seqkd",): "nll",
        ("gkd",): "coin",
        ("dudi",): "full",
        ("dudi", "without", ("on_policy", "sequence")): "without on_policy sequence",
        ("gkd", "variant", "sum"): "sum",
        ("sft", "loss_on", "all_assistant"): "all_assistant",
    }
    for (name, *rest), variant in names.items():
        assert build_method({"name": name, **dict([rest] if rest else [])}).variant == variant


def test_views_are_each_named_once_in_order() -> None:
    assert [v.name for v in views(build_method({"name": "dudi"}).signals)] == ["y", "y_prime", "y_tilde"]
    assert [v.name for v in views(build_method({"name": "spin"}).signals)] == ["y", "opponent"]
    assert [v.name for v in views(build_method({"name": "gkd"}).signals)] == ["y", "y_tilde"]


# ── the coin ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def heads(method: Method, seed: int, steps: int) -> list[bool]:
    """Whether each step is on-policy; every step reads exactly one of GKD's two signals."""
    fallen = []
    for step in range(steps):
        (signal,) = method.active(seed, step)
        fallen.append(signal.name == "on_policy")
    return fallen


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.8])
def test_the_coin_falls_as_often_as_lam_says(lam: float) -> None:
    fallen = heads(build_method({"name": "gkd", "lam": lam}), 3, 4000)
    assert {True, False} == set(fallen)
    assert abs(sum(fallen) / 4000 - lam) < 4 * (lam * (1 - lam) / 4000) ** 0.5


def test_the_coin_is_a_function_of_seed_and_step() -> None:
    gkd = build_method({"name": "gkd"})
    assert heads(gkd, 0, 100) == heads(build_method({"name": "gkd"}), 0, 100)
    assert heads(gkd, 0, 100) != heads(gkd, 1, 100)
    # Never to change by accident: a resumed run would train on other batches.
    assert "".join("on"[not h] for h in heads(gkd, 0, 24)) == "onooooonooonnoooonononnn"


@pytest.mark.parametrize("lam, name", [(0.0, "off_policy"), (1.0, "on_policy")])
def test_a_certain_coin(lam: float, name: str) -> None:
    gkd = build_method({"name": "gkd", "lam": lam})
    assert {s.name for step in range(200) for s in gkd.active(0, step)} == {name}


def test_without_a_coin_every_step_reads_every_signal() -> None:
    dudi = build_method({"name": "dudi"})
    assert all(dudi.active(0, step) == dudi.signals for step in range(20))


def test_expected_weights_each_signal_by_its_probability() -> None:
    gkd = build_method({"name": "gkd", "lam": 0.3}).expected()
    assert {s.name: s.weight for s in gkd} == {"off_policy": pytest.approx(0.7), "on_policy": pytest.approx(0.3)}
    for table in ({"name": "dudi"}, {"name": "gkd", "variant": "sum"}, {"name": "spin"}):
        method = build_method(table)
        assert method.expected() == method.signals


# ── bad tables ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "table, said",
    [
        ({}, "method.name: missing; choices: dft, dudi, gkd, sdft, seqkd, sft, spin"),
        ({"name": "gdk"}, "unknown method: 'gdk'; did you mean 'gkd'? choices: dft, dudi, gkd, sdft, seqkd, sft"),
        ({"name": "sft", "variant": "x"}, "unknown key of method sft: 'variant'; choices: loss_on"),
        ({"name": "gkd", "lambda": 0.5}, "unknown key of method gkd: 'lambda'; did you mean 'lam'? choices: "),
        ({"name": "gkd", "variant": "coins"}, "method gkd: variant: input should be 'coin' or 'sum', found 'coins'"),
        ({"name": "sdft", "verbalizer": "thai"}, "input should be 'none', 'english', 'multilingual', 'crosslingual'"),
        ({"name": "dft", "loss_on": "x"}, "method dft: loss_on: input should be 'last' or 'all_assistant', found 'x'"),
        ({"name": "gkd", "lam": -0.1}, "method gkd: lam: input should be greater than or equal to 0, found -0.1"),
        ({"name": "gkd", "jsd_beta": 0}, "method gkd: jsd_beta: input should be greater than 0, found 0"),
        ({"name": "sdft", "ema_rate": 1.5}, "method sdft: ema_rate: input should be less than or equal to 1, found 1"),
        ({"name": "dudi", "divergence": "dft"}, "method dudi: divergence: input should be 'forward_kl', 'reverse_kl'"),
        ({"name": "dudi", "alpha": None}, "method dudi: alpha: input should be a valid number, found None"),
        ({"name": "dudi", "alpha": 0, "lam": 0, "without": ["off_policy"]}, "dudi: no term is left"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_table_is_one_line_with_the_choices(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        build_method(table)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_method_by_name() -> None:
    assert [method_from_name(name) for name in METHODS] == [build_method({"name": name}) for name in METHODS]
    with pytest.raises(DudiError, match="unknown method: 'sfft'; did you mean 'sft'"):
        method_from_name("sfft")


def test_losses_and_responses_know_what_they_need() -> None:
    assert {loss.value for loss in Loss if loss.needs_teacher} == {"forward_kl", "reverse_kl", "jsd"}
    assert {r.value for r in Response if r.sampled} == {"y_prime", "y_tilde"}
    assert {r.value for r in Response if r.stored} == {"teacher", "opponent"}

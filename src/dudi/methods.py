"""The methods of the paper's Table 1 as rows of signals. Equation 8 is `dudi` below.

A method is a sum of signals; a signal is weight x loss x view; a view says which response is scored and through which
verbalizer the prompts were rewritten. Everything that trains, and `dudi methods`, is derived from these rows. Nothing
here needs torch: what a signal is worth on a batch is in `dudi.loss.signals`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict, ValidationError, validate_call

from dudi.draws import draw
from dudi.errors import DudiError, unknown
from dudi.signals import (
    Loss,
    LossOn,
    Mode,
    Response,
    SequenceSignal,
    Signal,
    TokenSignal,
    View,
    judged,
    views,
)
from dudi.strict import in_words


class Teacher(StrEnum):
    """Who the teacher is."""

    NONE = "none"
    LARGER = "larger"
    EMA = "self"  # exponential moving average of the student


@dataclass(frozen=True)
class Method:
    """A row of Table 1: signals, teacher, start, and what a step reads."""

    name: str
    variant: str
    signals: tuple[Signal, ...]
    teacher: Teacher = Teacher.NONE
    cold_start: bool = True
    """Starts from a cold start (its checkpoint is also R), not from the base student."""
    coin: float | None = None
    """Probability that a step's coin falls True (GKD's lambda); None: no coin."""
    ema_rate: float = 0.0
    """teacher <- (1 - rate) teacher + rate student after each optimizer step."""
    iterations: int = 1
    """Trainings in a row, each from the last one's result, which is also its R (SPIN)."""

    def __post_init__(self) -> None:
        names = [view.name for view in views(self.signals)]
        assert len(set(names)) == len(names), "a method reads each response through one view: names key random numbers"
        assert len({s.name for s in self.signals}) == len(self.signals), "signals have names of their own"

    def active(self, seed: int, step: int) -> tuple[Signal, ...]:
        """The signals that optimizer step `step` reads. The coin is a function of (seed, step): all ranks share it."""
        if self.coin is None:
            return self.signals
        side = draw(seed, step, "coin") / 2**64 < self.coin
        return tuple(s for s in self.signals if s.coin is None or s.coin is side)

    def expected(self) -> tuple[Signal, ...]:
        """All signals, each weighted by the probability that a step reads it: what the evaluation loss sums."""
        p = {None: 1.0, True: self.coin or 0.0, False: 1.0 - (self.coin or 0.0)}
        return tuple(replace(s, weight=s.weight * p[s.coin]) for s in self.signals)

    @property
    def needs_larger_teacher(self) -> bool:
        """A larger teacher scores tokens or writes the responses."""
        return self.teacher is Teacher.LARGER

    @property
    def judged_by_larger(self) -> bool:
        """A larger teacher scores tokens: SeqKD's `nll` needs what it wrote, not the teacher."""
        return self.needs_larger_teacher and bool(judged(self.signals))

    @property
    def needs_reference(self) -> bool:
        """A sequence signal compares with R."""
        return any(s.compared for s in self.signals)

    @property
    def stored(self) -> Response | None:
        """The response that a generation stage writes before training, if any."""
        found = {view.response for view in views(self.signals) if view.response.stored}
        assert len(found) <= 1
        return next(iter(found), None)


# ── the rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
InnerShare = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Divergence = Literal[Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD]
Terms = Annotated[tuple[Literal["sequence", "off_policy", "on_policy"], ...], Strict(False)]
ModeName = Annotated[Mode, Strict(False)]  # values are not coerced from other types, but TOML has no enums
LossOnName = Annotated[LossOn, Strict(False)]

GOLD = View(Response.GOLD)
ON_X = View(Response.Y_TILDE)
OFF, ON, SEQ = "off_policy", "on_policy", "sequence"


def sft(loss_on: LossOnName = LossOn.LAST) -> Method:
    """Supervised fine-tuning: equation 1 with w = 1."""
    signal = TokenSignal(OFF, 1.0, Loss.NLL, View(Response.GOLD, loss_on=loss_on))
    return Method("sft", loss_on, (signal,), cold_start=False)


def dft(loss_on: LossOnName = LossOn.LAST) -> Method:
    """Dynamic fine-tuning: equation 1 with w = sg(p(y_t)) per token, as in DFT's own code."""
    signal = TokenSignal(OFF, 1.0, Loss.DFT, View(Response.GOLD, loss_on=loss_on))
    return Method("dft", loss_on, (signal,), cold_start=False)


def spin(
    variant: Literal["original", "online"] = "original",
    spin_beta: Positive = 0.1,
    iterations: Annotated[int, Field(ge=1)] = 3,
) -> Method:
    """Self-play: equation 2, sign corrected. `original`: y' written once an iteration by R, the iteration's start.
    `online`: y' sampled in every step, R fixed (the paper's sequence signal alone; `iterations` is then 1)."""
    online = variant == "online"
    loser = View(Response.Y_PRIME if online else Response.OPPONENT)
    signal = SequenceSignal(SEQ, 1.0, loser, spin_beta)
    return Method("spin", variant, (signal,), iterations=1 if online else iterations)


def sdft(
    variant: Literal["official", "reverse"] = "official",
    ema_rate: Annotated[float, Field(gt=0, le=1)] = 0.01,
    skip_tokens: Annotated[int, Field(ge=0)] = 3,
    verbalizer: ModeName = Mode.ENGLISH,
) -> Method:
    """Self-distillation: equation 3. `official`: KL(T || S), as in SDFT's code; `reverse`: KL(S || T), as it prints."""
    loss = Loss.FORWARD_KL if variant == "official" else Loss.REVERSE_KL
    signal = TokenSignal(ON, 1.0, loss, View(Response.Y_TILDE, verbalizer), skip_tokens=skip_tokens)
    return Method("sdft", variant, (signal,), Teacher.EMA, ema_rate=ema_rate)


def seqkd(variant: Literal["nll", "jsd"] = "nll", jsd_beta: InnerShare = 0.5) -> Method:
    """Sequence-level distillation: train on what the teacher wrote. `jsd`: a divergence there, as the paper's runs."""
    loss = Loss.NLL if variant == "nll" else Loss.JSD
    signal = TokenSignal(OFF, 1.0, loss, View(Response.TEACHER), _arguments(loss, jsd_beta))
    return Method("seqkd", variant, (signal,), Teacher.LARGER)


def gkd(
    variant: Literal["coin", "sum"] = "coin",
    lam: Share = 0.5,
    divergence: Divergence = Loss.JSD,
    jsd_beta: InnerShare = 0.5,
) -> Method:
    """Generalized distillation: equation 4. `coin`: a whole step is on-policy with probability lam, else off-policy
    (GKD's algorithm 1); `sum`: both terms in every step, weighted."""
    arguments = _arguments(divergence, jsd_beta)
    if variant == "sum":
        off = TokenSignal(OFF, 1 - lam, divergence, GOLD, arguments)
        on = TokenSignal(ON, lam, divergence, ON_X, arguments)
        return _without_zeros(Method("gkd", variant, (off, on), Teacher.LARGER))
    off = TokenSignal(OFF, 1.0, divergence, GOLD, arguments, coin=False)
    on = TokenSignal(ON, 1.0, divergence, ON_X, arguments, coin=True)
    return Method("gkd", variant, (off, on), Teacher.LARGER, coin=lam)


def dudi(
    alpha: Weight = 0.1,
    lam: Share = 0.5,
    spin_beta: Positive = 0.1,
    divergence: Divergence = Loss.REVERSE_KL,
    jsd_beta: InnerShare = 0.5,
    verbalizer: ModeName = Mode.CROSSLINGUAL,
    include_english: bool = True,
    without: Terms = (),
) -> Method:
    """Equation 8. `without` drops terms and leaves the other weights as they are (paper table 4)."""
    on_view = View(Response.Y_TILDE, verbalizer, include_english)
    arguments = _arguments(divergence, jsd_beta)
    signals = (
        SequenceSignal(SEQ, alpha, View(Response.Y_PRIME), spin_beta),  # equation 2: y' ~ student(x)
        TokenSignal(OFF, 1 - lam, divergence, GOLD, arguments),  # equation 5: y from the data
        TokenSignal(ON, lam, divergence, on_view, arguments),  # equation 7: y~ ~ student(p_z, x)
    )
    kept = tuple(s for s in signals if s.name not in without)
    variant = f"without {' '.join(without)}" if without else "full"
    teacher = Teacher.LARGER if judged(kept) else Teacher.NONE
    return _without_zeros(Method("dudi", variant, kept, teacher))


METHODS: dict[str, Callable[..., Method]] = {f.__name__: f for f in (sft, dft, spin, sdft, seqkd, gkd, dudi)}


def _arguments(divergence: Loss, jsd_beta: float) -> dict[str, float]:
    return {"beta": jsd_beta} if divergence is Loss.JSD else {}


def _without_zeros(method: Method) -> Method:
    """A signal of weight zero is not computed."""
    kept = tuple(s for s in method.signals if s.weight > 0)
    if not kept:
        raise ValueError(f"{method.name}: no term is left; every weight is zero or dropped")
    return replace(method, signals=kept)


# ── from a recipe, and to Table 1 ────────────────────────────────────────────────────────────────────────────────────
def build_method(table: Mapping[str, Any]) -> Method:
    """A method from a recipe's `[method]` table: `name` and that function's own arguments.

    Raises `ValueError` (a recipe's validator turns it into its one line) on an unknown name, key or value.
    """
    arguments = dict(table)
    name = arguments.pop("name", None)
    if name is None:
        raise ValueError(f"method.name: missing; choices: {', '.join(sorted(METHODS))}")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(unknown(str(name), METHODS, "method"))
    choices = list(inspect.signature(METHODS[name]).parameters)
    for key in arguments:
        if key not in choices:
            raise ValueError(unknown(key, choices, f"key of method {name}"))
    try:
        return validate_call(config=ConfigDict(strict=True, allow_inf_nan=False))(METHODS[name])(**arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        text = re.sub(r"<[\w.]+: ('\w+')>", r"\1", in_words(first, {}))  # enum members as text
        raise ValueError(f"method {name}: {key}: {text}") from None


def method_from_name(name: str) -> Method:
    """The method of that name with its defaults; raises `DudiError` with the choices."""
    try:
        return build_method({"name": name})
    except ValueError as error:
        raise DudiError(str(error)) from None


TABLE_1_COLUMNS = ("Method", "Teacher", "Off-policy token", "On-policy token", "Sequence", "Verbalizer")


def table_1() -> list[tuple[str, ...]]:
    """The paper's Table 1, derived from the methods' signals. One tuple of `TABLE_1_COLUMNS` a method."""
    return [_row(METHODS[name]()) for name in METHODS]


def _row(method: Method) -> tuple[str, ...]:
    tokens = [s for s in method.signals if isinstance(s, TokenSignal)]
    modes = {s.view.verbalizer for s in tokens} - {Mode.NONE}
    return (
        {"seqkd": "SeqKD", "dudi": "DuDi"}.get(method.name, method.name.upper()),
        {Teacher.NONE: "-", Teacher.EMA: "Self", Teacher.LARGER: "Larger"}[method.teacher],
        "yes" if any(not s.view.response.sampled for s in tokens) else "-",
        "yes" if any(s.view.response.sampled for s in tokens) else "-",
        "yes" if method.needs_reference else "-",
        {Mode.ENGLISH: "English", Mode.CROSSLINGUAL: "Cross-lingual"}.get(*modes, *modes) if modes else "-",
    )

"""Signals: what a method adds up, each a weight x a loss x the views that it reads. Nothing here needs torch.

To add one: pass a loss of your own to a `TokenSignal` (per token) or a `SequenceSignal` (of the margin between two
whole responses), or write a class of your own and say in `dudi.loss.signals.share` what it is worth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Protocol


class Response(StrEnum):
    """Which response a view scores."""

    GOLD = "y"
    Y_PRIME = "y_prime"
    Y_TILDE = "y_tilde"
    TEACHER = "teacher"
    OPPONENT = "opponent"

    @property
    def meaning(self) -> str:
        """Where it comes from, in words."""
        return _MEANINGS[self]

    @property
    def sampled(self) -> bool:
        """Sampled from the current student within the step."""
        return self in (Response.Y_PRIME, Response.Y_TILDE)

    @property
    def stored(self) -> bool:
        """Sampled before training, by a generation stage."""
        return self in (Response.TEACHER, Response.OPPONENT)


_MEANINGS = {
    Response.GOLD: "the ground truth: the row's own answer",
    Response.Y_PRIME: "y' ~ student(x), sampled in the step",
    Response.Y_TILDE: "y~ ~ student(p_z, x), sampled in the step; another sample than y'",
    Response.TEACHER: "~ teacher(x), sampled once by a stage of its own",
    Response.OPPONENT: "~ reference(x), sampled once an iteration by a stage of its own",
}


class Mode(StrEnum):
    """Verbalizer modes (paper 3.3, table 5); see `dudi.text.verbalizer`."""

    NONE = "none"
    ENGLISH = "english"
    MULTILINGUAL = "multilingual"
    CROSSLINGUAL = "crosslingual"
    MIX = "mix"


class Loss(StrEnum):
    """Per-token losses; the mathematics is in `dudi.loss.losses` under the same names."""

    NLL = "nll"
    DFT = "dft"
    FORWARD_KL = "forward_kl"
    REVERSE_KL = "reverse_kl"
    JSD = "jsd"

    @property
    def formula(self) -> str:
        """Its value at a token. S: student, T: teacher, sg: without a gradient."""
        return _FORMULAS[self]

    @property
    def needs_teacher(self) -> bool:
        """A divergence between teacher and student."""
        return self not in (Loss.NLL, Loss.DFT)


_FORMULAS = {
    Loss.NLL: "-log S(y_t)",
    Loss.DFT: "-sg(S(y_t)) log S(y_t)",
    Loss.FORWARD_KL: "KL(T || S)",
    Loss.REVERSE_KL: "KL(S || T)",
    Loss.JSD: "beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S",
}


class LossOn(StrEnum):
    """Which assistant turns a cross-entropy method is trained on."""

    LAST = "last"
    ALL_ASSISTANT = "all_assistant"


@dataclass(frozen=True)
class View:
    """Which response, and through which verbalizer its prompts were rewritten."""

    response: Response
    verbalizer: Mode = Mode.NONE
    include_english: bool = True
    loss_on: LossOn = LossOn.LAST

    @property
    def name(self) -> str:
        """Short name, for logs: the response, since a method reads each response through one view."""
        return self.response.value

    @property
    def fixed(self) -> bool:
        """Prompt and response are the same in every epoch, so that a frozen model says the same of them each time."""
        return not self.response.sampled and self.verbalizer is Mode.NONE and self.loss_on is LossOn.LAST


class Seen(Protocol):
    """A row through a view, as far as counting needs it."""

    @property
    def counted(self) -> int:
        """Positions of the response that can carry a loss."""
        ...


Items = Mapping[View, Sequence[Seen | None]]
"""By view, one entry a row; None where the row has no such view."""


@dataclass(frozen=True)
class Signal(ABC):
    """weight x mean of a loss, over all that the whole optimizer step counts for it."""

    name: str
    weight: float
    coin: bool | None = field(default=None, kw_only=True)
    """Read only in steps whose coin fell so; None: in every step."""

    quantities: ClassVar[tuple[str, ...]] = ()
    """What its metrics hold beside loss and count (`dudi.loss.signals.Outcome.extra`)."""

    @property
    @abstractmethod
    def views(self) -> tuple[View, ...]:
        """The views that it reads."""

    @property
    def judged(self) -> tuple[View, ...]:
        """Those of them that the teacher scores."""
        return ()

    @property
    def compared(self) -> tuple[View, ...]:
        """Those of them that the reference R scores."""
        return ()

    @property
    @abstractmethod
    def description(self) -> str:
        """The loss and what it reads, in a few words."""

    @property
    def formula(self) -> str:
        """What it takes the mean of; empty where nobody has written it down."""
        return ""

    @abstractmethod
    def count(self, items: Items, weight: Sequence[float]) -> float:
        """What the mean is taken over, in these rows. weight: by row, 0 for rows that only fill up a batch."""


@dataclass(frozen=True)
class TokenSignal(Signal):
    """weight x mean over the response tokens of the whole step of loss."""

    loss: Loss | Callable[..., Any]
    """One of the named losses, or a `dudi.loss.losses.TokenLoss` of your own."""
    view: View
    arguments: Mapping[str, float] = field(default_factory=dict)
    """Passed on to the loss, such as `beta` of a JSD."""
    skip_tokens: int = 0
    """The first tokens of each response that carry no loss (SDFT's official code: 3)."""
    teacher: bool | None = None
    """Whether the loss compares with the teacher; None: as the named loss does."""

    def __post_init__(self) -> None:
        assert self.teacher is not None or isinstance(self.loss, Loss), "a loss of your own: say whether it is judged"

    @property
    def views(self) -> tuple[View, ...]:
        """The one that it reads."""
        return (self.view,)

    @property
    def judged(self) -> tuple[View, ...]:
        """The same, for a divergence."""
        compares = self.loss.needs_teacher if isinstance(self.loss, Loss) else self.teacher
        return self.views if compares else ()

    @property
    def description(self) -> str:
        """Such as `reverse_kl on y_tilde, verbalizer crosslingual`."""
        loss = self.loss.value if isinstance(self.loss, Loss) else self.loss.__name__
        mode = self.view.verbalizer
        return f"{loss} on {self.view.name}" + ("" if mode is Mode.NONE else f", verbalizer {mode.value}")

    @property
    def formula(self) -> str:
        """Of a named loss, with its arguments."""
        if not isinstance(self.loss, Loss):
            return ""
        given = ", ".join(f"{name} = {value:g}" for name, value in self.arguments.items())
        return ", ".join(part for part in (self.loss.formula, given) if part)

    def count(self, items: Items, weight: Sequence[float]) -> float:
        """Response tokens."""
        pairs = zip(items[self.view], weight, strict=True)
        return sum(w * max(item.counted - self.skip_tokens, 0) for item, w in pairs if item is not None)


@dataclass(frozen=True)
class SequenceSignal(Signal):
    """weight x mean over rows of a loss of the margin by which the student prefers one whole response to another:

    margin = beta [(log S(y|x) - log S(y'|x)) - (log R(y|x) - log R(y'|x))].
    SPIN's loss of it is -logsigmoid(margin) (equation 2 with the sign corrected).
    """

    loser: View
    beta: float = 0.1
    winner: View = View(Response.GOLD)
    loss: Callable[..., Any] | None = None
    """A `dudi.loss.losses.MarginLoss` of your own; None: SPIN's."""

    quantities: ClassVar[tuple[str, ...]] = ("margin", "saturated")

    @property
    def views(self) -> tuple[View, ...]:
        """y and y'."""
        return (self.winner, self.loser)

    @property
    def compared(self) -> tuple[View, ...]:
        """Both."""
        return self.views

    @property
    def description(self) -> str:
        """Such as `spin, beta 0.1, y against y_prime`."""
        name = "spin" if self.loss is None else self.loss.__name__
        return f"{name}, beta {self.beta:g}, {self.winner.name} against {self.loser.name}"

    @property
    def formula(self) -> str:
        """SPIN's loss of the margin."""
        margin = "beta [(log S(y|x) - log S(y'|x)) - (log R(y|x) - log R(y'|x))]"
        return f"-log sigmoid({margin}), beta = {self.beta:g}" if self.loss is None else ""

    def count(self, items: Items, weight: Sequence[float]) -> float:
        """Rows that have both responses."""
        rows = zip(*(items[view] for view in self.views), weight, strict=True)
        return sum(w for winner, loser, w in rows if winner is not None and loser is not None)


def views(signals: Sequence[Signal]) -> tuple[View, ...]:
    """Every view the signals read, each once, in order."""
    return tuple(dict.fromkeys(view for s in signals for view in s.views))


def judged(signals: Sequence[Signal]) -> tuple[View, ...]:
    """The views that the teacher scores."""
    return tuple(dict.fromkeys(view for s in signals for view in s.judged))


def compared(signals: Sequence[Signal]) -> tuple[View, ...]:
    """The views that the reference scores."""
    return tuple(dict.fromkeys(view for s in signals for view in s.compared))

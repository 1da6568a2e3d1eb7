"""The lab's models by name: class, size, how long each is trained, and on how much.

`FULL` is what ships; `TINY` what tests build, in every class that a model may be of.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How one model is made: class, size, what it reads, and for how long."""

    family: str
    hidden: int
    layers: int
    steps: int
    lr: float
    """AdamW's, for embeddings, norms, biases."""
    muon: tuple[float, float]
    """Muon's rate and weight decay, for the layers' matrices."""
    teacher: bool = False
    rows: int = 64
    alone: float = 0.035
    """Languages come one after the other, each for this share of the steps (the first one for twice as long) as
    frequent as all before it together."""
    exercises: float = 0.5
    """Share of exercises in what a base student reads."""
    thin: str | None = None
    """A language that a teacher hardly knows (`dudi.lab.rows.UNTAUGHT`)."""
    more_z: bool = False
    """A teacher's lessons have z more often."""
    tuning: int = 0
    """Steps of a teacher after all these, from the finished model. From the first whole pool of documents on, they read
    lessons with more z still (`TUNED_Z`, `TUNED_TAUGHT`, `TUNED_ELSEWHERE` in `dudi.lab.rows`)."""
    tuning_rate: float = 0.3
    """Share of the rates that the tuning goes up to."""

    @property
    def total(self) -> int:
        """All of its steps."""
        return self.steps + self.tuning


@dataclass(frozen=True)
class Build:
    """A whole build: the tokenizer's size, its text, and the models."""

    vocab: int
    documents: int
    models: dict[str, Plan]


FULL = Build(
    vocab=3072,
    documents=60_000,
    models={
        "teacher": Plan("qwen3", 128, 5, 8500, 1.5e-3, (0.01, 0.02), teacher=True, rows=48, thin="my", more_z=True),
        "student-small": Plan("qwen3", 96, 5, 5000, 2e-3, (0.01, 0.02), alone=0.055, exercises=0.65),
        "student-large": Plan("qwen3", 128, 5, 4000, 2e-3, (0.01, 0.02), alone=0.055, exercises=0.65),
        "student-gemma": Plan("gemma3", 96, 5, 5000, 2e-3, (0.01, 0.02), alone=0.055, exercises=0.65),
        "teacher-gemma": Plan(
            "gemma3", 128, 5, 8500, 1.5e-3, (0.01, 0.02), teacher=True, rows=48, thin="my", more_z=True, tuning=2000
        ),
    },
)
TINY = Build(
    vocab=1536,
    documents=4_000,
    models={
        "teacher": Plan("qwen3", 64, 2, 120, 5e-3, (0.02, 0.02), teacher=True, rows=32),
        "student-small": Plan("qwen3", 32, 2, 60, 5e-3, (0.02, 0.02), rows=32),
        "student-large": Plan("qwen3", 64, 2, 60, 5e-3, (0.02, 0.02), rows=32),
        "student-gemma": Plan("gemma3", 32, 2, 60, 5e-3, (0.02, 0.02), rows=32),
        "teacher-gemma": Plan("gemma3", 64, 2, 120, 5e-3, (0.02, 0.02), teacher=True, rows=32),
    },
)

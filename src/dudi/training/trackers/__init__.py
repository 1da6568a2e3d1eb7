"""Trackers: monitors that pass a training on to TensorBoard, Weights & Biases, trackio or MLflow. One file a tracker,
one line in `TRACKERS`. Their packages are imported when a training begins that reports to them, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from dudi.errors import DudiError, unknown
from dudi.training.trackers.mlflow import MLflow
from dudi.training.trackers.tensorboard import TensorBoard
from dudi.training.trackers.tracker import Tracker
from dudi.training.trackers.trackio import Trackio
from dudi.training.trackers.wandb import WandB

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
    "mlflow": MLflow,
}
"""By the name that `training.report_to` gives."""


def check_trackers(names: Iterable[str]) -> None:
    """Raises `DudiError` for a tracker that there is not, or whose package is not installed; nothing is imported."""
    for name in names:
        if name not in TRACKERS:
            raise DudiError(f"training.report_to: {unknown(name, TRACKERS, 'tracker')}")
        package = TRACKERS[name].package
        if find_spec(package) is None:
            raise DudiError(
                f"training.report_to: {name!r} needs the package {package}, which is not installed: pip install"
                f" {package}, or leave it out"
            )


def trackers(names: Iterable[str], say: Callable[[str], None]) -> list[Tracker]:
    """The trackers of one training. say: told of one that fails."""
    return [TRACKERS[name](name, say) for name in names]

"""dudi: distillation of small language models for Southeast Asian languages.

Read in this order: `methods` (equation 8 and Table 1), `signals`, `text.verbalizer` (p_z and z), `loss.losses` and
`loss.chunked` (the mathematics), `loss.objective` (a method evaluated), `training.trainer` (one optimizer step),
`run.pipeline` (a recipe, run). What a program uses is in `run.api`, and here.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["DudiError", "Monitor", "evaluate", "load_recipe", "stats", "train", "verbalize"]

_HOMES = {
    "DudiError": "dudi.errors",
    "Monitor": "dudi.training.monitors",
    "evaluate": "dudi.evals.evaluate",
    "load_recipe": "dudi.recipe.read",
    "stats": "dudi.report.stats",
    "train": "dudi.run.api",
    "verbalize": "dudi.run.api",
}


def __getattr__(name: str) -> Any:
    """The interface, each part loaded when it is first asked for: `import dudi` alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dudi' has no attribute {name!r}")
    home = import_module(_HOMES[name])
    return home if name == "stats" else getattr(home, name)

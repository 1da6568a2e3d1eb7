"""What the tests share, each noun once: tiny real models, rows, trainers; and, by module, runs, processes, the command,
benchmarks, reports, labs, and `oracle`, the methods written out plainly.

A test module imports the kit and never another test module. `kit.model`, `kit.trainer` and so on are here; the rest by
its module: `from kit.command import Dudi`.
"""

from kit.models import CHATML, CLASSES, VOCAB, model, save, tokenizer
from kit.rows import LANGUAGES, builtin, message, short_rows, write_rows
from kit.trainers import Forced, step, trainer, watched

__all__ = [
    "CHATML",
    "CLASSES",
    "LANGUAGES",
    "VOCAB",
    "Forced",
    "builtin",
    "message",
    "model",
    "save",
    "short_rows",
    "step",
    "tokenizer",
    "trainer",
    "watched",
    "write_rows",
]

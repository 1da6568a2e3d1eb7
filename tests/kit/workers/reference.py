"""What R takes of a process's memory: `kit.workers.reference own|adapter` prints bytes, of the weights and measured.

own: a model of its own, as full training has it; adapter: the student without its adapter.
"""

from __future__ import annotations

import gc
import json
import sys

import psutil
import torch
from transformers import PreTrainedModel

import kit
from dudi.models.adapter import without_adapter
from dudi.models.reader import Reader
from dudi.models.reference import like_student
from dudi.training.phases import trim
from kit.adapters import adapted


def load() -> PreTrainedModel:
    """39 million weights, frozen."""
    made = kit.model(1, hidden=512, layers=8, rows=40_000, dtype=torch.float32, sharpness=1.0)
    return made.requires_grad_(False).eval()


def resident() -> int:
    """Bytes of this process, what was freed given back."""
    gc.collect()
    trim()
    return int(psutil.Process().memory_info().rss)


def main(how: str) -> None:
    student = load() if how == "own" else adapted(load())
    Reader(student, kit.VOCAB, "student")  # what a first call takes
    before = resident()
    reference = like_student(load, autocast=False) if how == "own" else without_adapter(student)
    Reader(reference, kit.VOCAB, "reference")
    size = sum(p.numel() * p.element_size() for p in reference.parameters())
    print(json.dumps({"weights": size, "taken": resident() - before}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])

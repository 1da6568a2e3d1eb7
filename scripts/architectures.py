"""Write docs/architectures.md: each architecture as a tiny random model, built, tried and put into a table.

python scripts/architectures.py            # prints the page
python scripts/architectures.py --write    # writes it (`make` does not: the library decides what it says)
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architectures.md"
sys.path.insert(0, str(ROOT / "tests"))

import transformers  # noqa: E402
from kit.architectures import ARCHITECTURES, Checked, check  # noqa: E402

HEAD = """# Architectures

Written by `scripts/architectures.py` with transformers {version}. Each row is a tiny random model of that `model_type`
(float32, on a CPU, with whatever attention transformers chooses), on prompts of unequal lengths.

- **greedy**: decoding in a batch with the cache gives the tokens that reading everything again for each token gives.
- **generate**: so does the model's own `generate`.
- **loss**: cross-entropy and reverse KL with all gradients, in training mode and on padded rows, against one row at a
  time and the model's full logits: the largest relative error.
- **batch**: prompts of unequal lengths are decoded together; else one length at a time, since the model sees padding on
  its left, or ignores the mask: right, but slower.

Any other model is tried in the same way, on 16 tokens, before its stage trains or samples: that its logits are its last
hidden states times its head (with the scale and softcap of its config), that it reads from left to right, and that its
cache changes nothing. What fails is refused by name, in one line.

## Memory of the reference R

R (SPIN, DuDi) is computed as the student is, so that its margin starts at 0 (or at a rounding, where the two read
sequences of other lengths: with a cache, or where y~ answers x too). Under bfloat16 autocast that takes
2 bytes for each weight of a linear layer and 4 for everything else: embeddings (and with them a tied head) and norms.
For a model of 0.5 B parameters with 136 M of them in a tied embedding that is 1.26 GB, where a pure bfloat16 copy would
take 0.99. A larger teacher is a pure bfloat16 copy. Where the student is trained by [an adapter](adapters.md), R is the
same weights without it, and takes no memory.

## Several responses to one prompt

Models of the Llama, Qwen2 and Qwen3 classes read x once for y and y' (SPIN, DuDi, GKD's `sum`): one sequence of the
prompt and the responses, each of which sees the prompt and itself and has the positions that it has alone. Hidden
states are those of separate readings up to rounding (`tests/loss/test_prefix.py`). It takes a mask of what sees what,
and layers that all look back at every token. So models of other classes, with sliding windows, with rotations that
follow the length (`dynamic`, `longrope`), under another attention than PyTorch's (`sdpa`) or sharded by `fsdp2` read x
once for each response, and so does any model where responses are much longer than their prompts. Not run on a GPU so
far.

## Dropout

Is off in the student, whatever its config says, unless `training.dropout = true` (SFT and DFT only): with it, the
student that is compared with R or with a teacher is another one at each call.

## Table

| architecture | greedy | generate | loss | batch | |
|---|---|---|---|---|---|
"""


def row(found: Checked) -> str:
    """One line of the table."""
    if found.refused is not None:
        return f"| {found.name} | - | - | - | - | refused: {found.refused} |\n"
    marks = ["yes" if value else "**no**" for value in (found.greedy, found.generate)]
    batch = "yes" if found.padding else "by length"
    return f"| {found.name} | {marks[0]} | {marks[1]} | {found.loss:.0e} | {batch} | |\n"


def page() -> str:
    """The whole page."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    return HEAD.format(version=transformers.__version__) + "".join(row(check(name)) for name in sorted(ARCHITECTURES))


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())

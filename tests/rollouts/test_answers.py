"""The draw of a token follows the softmax and takes nothing that has no probability."""

from __future__ import annotations

import kit
import pytest
import torch

from dudi.rollouts import Request, Sampling
from dudi.rollouts.answers import BLOCK, inverse_cdf, likeliest
from dudi.rollouts.local import LocalEngine

TOP = 1 - 2**-53
"""The largest number that is drawn."""


def chi_square(tokens: torch.Tensor, p: torch.Tensor) -> float:
    """Pearson's statistic of token counts against probabilities, in standard deviations above its mean. Tokens that are
    expected less than ten times are taken together."""
    counts = torch.bincount(tokens, minlength=len(p)).double()
    wanted = p.double() * len(tokens)
    rare = wanted < 10
    counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
    wanted = torch.cat((wanted[~rare], wanted[rare].sum()[None]))
    freedom = len(wanted) - 1
    assert freedom > 20
    return float((((counts - wanted) ** 2 / wanted).sum() - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, 3 * BLOCK, 3 * BLOCK + 17])
def test_draws_follow_the_softmax(size: int) -> None:
    """In vocabularies of whole blocks and of others."""
    g = torch.Generator().manual_seed(size)
    logits = 1.5 * torch.randn(1, size, generator=g)
    u = torch.rand(40_000, generator=g, dtype=torch.float64)
    tokens = inverse_cdf(logits.expand(len(u), -1), u)
    p = torch.softmax(logits[0], -1)
    assert chi_square(tokens, p) < 4
    assert chi_square(tokens, torch.softmax(1.1 * logits[0], -1)) > 4, "else nothing is shown"


def test_rollouts_follow_the_softmax() -> None:
    """First tokens of one prompt, at temperature 0.5, through the engine."""
    model = kit.model(4, rows=kit.VOCAB + 6, sharpness=8.0, dtype=torch.float32).eval()
    prompt, n = tuple(range(3, 8)), 4000
    asked = [Request(prompt, ("train", 0, 0, k, "y_prime"), 1) for k in range(n)]
    tokens = torch.tensor([r.ids[0] for r in LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.5))(model, asked)])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1, : kit.VOCAB]
    assert chi_square(tokens, torch.softmax(logits / 0.5, -1)) < 4
    assert chi_square(tokens, torch.softmax(logits / 0.55, -1)) > 4


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 17])
def test_the_likeliest_token_is_the_first_of_equals(size: int) -> None:
    """In the first block and in the last, shorter one; also where all others are impossible."""
    logits = torch.randint(-9, 9, (50, size), generator=torch.Generator().manual_seed(size)).float()
    only = torch.full((size, size), -torch.inf).fill_diagonal_(-3.0)
    for found in (logits, only):
        first = [row.index(max(row)) for row in found.tolist()]
        assert likeliest(found).tolist() == first


@pytest.mark.parametrize("u", [0.0, 0.5, TOP])
@pytest.mark.parametrize("only", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 4])
def test_what_has_no_probability_is_never_drawn(u: float, only: int) -> None:
    """All tokens but one: at both ends of the interval, at the borders of blocks, and in the last, shorter block."""
    logits = torch.full((1, 2 * BLOCK + 5), -torch.inf)
    logits[0, only] = 3.0
    assert inverse_cdf(logits, torch.tensor([u], dtype=torch.float64)).tolist() == [only]


def test_the_ends_of_the_interval() -> None:
    logits = torch.zeros(2, 3 * BLOCK)
    logits[:, :5], logits[:, -7:] = -torch.inf, -torch.inf
    assert inverse_cdf(logits, torch.tensor([0.0, TOP], dtype=torch.float64)).tolist() == [5, 3 * BLOCK - 8]

"""Nothing is dropped while a student decodes, and the draw of a token is exact in a real vocabulary."""

from __future__ import annotations

from pathlib import Path

import kit
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from dudi.rollouts import Request, Sampling
from dudi.rollouts.answers import inverse_cdf
from dudi.rollouts.local import LocalEngine

QWEN = 151_936


def noisy() -> PreTrainedModel:
    """GPT-2 with half of everything dropped in training mode."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=kit.VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=2048,
        bos_token_id=None,
        eos_token_id=2,
        resid_pdrop=0.5,
        embd_pdrop=0.5,
        attn_pdrop=0.5,
    )
    made = GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(4.0)
    return made


def requests(count: int = 6) -> list[Request]:
    """Ragged prompts."""
    g = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, kit.VOCAB, (4 + 3 * k,), generator=g).tolist() for k in range(count)]
    return [Request(tuple(prompt), ("train", 0, 0, k, "y_prime"), 8) for k, prompt in enumerate(prompts)]


def greedy() -> LocalEngine:
    return LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.0))


# ── dropout ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_nothing_is_dropped_while_decoding(temperature: float) -> None:
    """A student in training mode answers as in evaluation mode, and is in training mode afterwards."""
    model, sampler = noisy(), LocalEngine(Sampling((2,), 0, kit.VOCAB, temperature))
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        assert not torch.equal(model.train()(ids).logits, model.eval()(ids).logits), "else nothing is shown"
    wanted = sampler(model.eval(), requests())
    assert not model.training
    assert sampler(model.train(), requests()) == wanted
    assert model.training and all(module.training for module in model.modules())


def test_a_student_with_dropout_is_trained_in_training_mode(tmp_path: Path) -> None:
    """As `from_pretrained` gives it, in evaluation mode, and again after an evaluation."""

    def losses(folder: str, dropout: bool) -> list[float]:
        made = kit.trainer(
            tmp_path / folder, {"name": "sft"}, student=noisy().eval(), evals=kit.builtin()[:2], dropout=dropout
        )
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.append(kit.step(made)[0])
        made.evaluate()
        made.student.eval()
        torch.manual_seed(2)
        return [*found, kit.step(made)[0]]

    off = losses("off", dropout=False)
    assert off == pytest.approx(off[:1] * 3, rel=1e-6)
    on = [*losses("on", dropout=True), off[0]]
    gaps = [abs(a - b) for k, a in enumerate(on) for b in on[:k]]
    assert min(gaps) > 1e-3, on


# ── the draw ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("likely", [0.0, 17.0])
def test_the_draw_is_exact_in_a_real_vocabulary(likely: float) -> None:
    """151,936 tokens, all equally likely, or all but one of the size of float32's own spacing near 1: the number in the
    middle of a token's interval draws that token."""
    logits = torch.zeros(1, QWEN)
    logits[0, 0] = likely
    p = torch.softmax(logits, -1)[0].double()
    cdf = p.cumsum(-1)
    tokens = torch.linspace(0, QWEN - 1, 64).long()
    u = (cdf[tokens] - p[tokens] / 2) / cdf[-1]
    assert torch.equal(inverse_cdf(logits.expand(len(tokens), -1), u), tokens)


def test_the_draw_is_that_of_a_plain_sum() -> None:
    """Uneven probabilities: the first token at which their sum in float64 exceeds u."""
    g = torch.Generator().manual_seed(1)
    logits, u = torch.randn(16, QWEN, generator=g), torch.rand(16, generator=g, dtype=torch.float64)
    p = torch.softmax(logits.double(), -1)
    found = inverse_cdf(logits, u)
    for row, token in enumerate(found.tolist()):
        below = p[row, :token].sum().item()
        assert below - 1e-7 <= u[row].item() < below + p[row, token].item() + 1e-7

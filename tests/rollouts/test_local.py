"""The built-in engine: each rollout is that of a row alone, token by token; never a row of padding of the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.oracle import Ids, lively, sample, use_exact_norms

from dudi.rollouts import Request, Sampling, uniforms
from dudi.rollouts.local import LocalEngine
from dudi.text.chat import Chat


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    use_exact_norms(monkeypatch)


def requests(count: int = 12, longest: int = 17) -> list[Request]:
    """Ragged prompts with limits of their own."""
    g = torch.Generator().manual_seed(5)
    made = []
    for k in range(count):
        length = int(torch.randint(1, 40, (1,), generator=g))
        prompt = torch.randint(3, kit.VOCAB, (length,), generator=g).tolist()
        made.append(
            Request(tuple(prompt), ("train", 0, 0, k, "y_prime"), int(torch.randint(1, longest, (1,), generator=g)))
        )
    return made


def one_by_one(model: Any, asked: Sequence[Request], stop: Sequence[int], temperature: float) -> list[tuple[Ids, bool]]:
    """The same rollouts, each on its own."""
    u = uniforms(asked, max(r.limit for r in asked))
    return [sample(model, r.prompt, u[k].tolist(), kit.VOCAB, temperature, stop, r.limit) for k, r in enumerate(asked)]


@pytest.mark.parametrize(
    "kind, temperature, pad_is_stop", [("qwen2", 0.9, False), ("qwen3", 1.0, True), ("llama", 0.3, True)]
)
def test_a_batch_of_rollouts_is_each_alone(kind: str, temperature: float, pad_is_stop: bool) -> None:
    model = lively(kit.model(4, kind=kind, rows=kit.VOCAB + 30, sharpness=3.0)).eval()
    chat = Chat(kit.tokenizer(), None, {})
    asked = requests()
    # tokens that this model does sample, so that some rollouts stop, at different places, and some are cut
    free = one_by_one(model, asked, (), temperature)
    stop = sorted({free[k][0][len(free[k][0]) // 2] for k in (0, 3, 4, 7)})
    wanted = one_by_one(model, asked, stop, temperature)
    found = LocalEngine(Sampling(stop, stop[0] if pad_is_stop else chat.pad, chat.vocab, temperature))(model, asked)
    assert [(r.ids, r.finished) for r in found] == wanted
    assert {done for _, done in wanted} == {True, False}
    assert len({len(ids) for ids, _ in wanted}) > 4
    for (ids, done), request in zip(wanted, asked, strict=True):
        assert done or len(ids) == request.limit
        assert (ids[-1] in stop) is done and not set(ids[:-1]) & set(stop)
    assert any(f[0] != ids for f, (ids, _) in zip(free, wanted, strict=True)), "no rollout was stopped early"


def test_a_rollout_does_not_depend_on_its_batch() -> None:
    """In float64: the order of requests, their number and the others' lengths change no token; the key does."""
    model = lively(kit.model(4, rows=kit.VOCAB + 6, sharpness=3.0)).eval()
    sampler = LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.9))
    asked = requests()
    whole = sampler(model, asked)
    assert sampler(model, asked[::-1])[::-1] == whole
    assert [sampler(model, [r])[0] for r in asked] == whole
    assert sampler(model, [replace(r, limit=r.limit + 3) for r in asked])[0].ids[: len(whole[0].ids)] == whole[0].ids
    other = sampler(model, [replace(r, key=(*r.key[:-1], "y_tilde")) for r in asked])
    assert sum(a.ids != b.ids for a, b in zip(whole, other, strict=True)) > len(asked) // 2
    assert sampler(model, []) == []


def test_padded_vocabulary_rows_are_never_sampled() -> None:
    """Rows of the head beyond the tokenizer, with logits far above all others."""
    model = lively(kit.model(4, rows=kit.VOCAB + 30, tied=False, sharpness=3.0)).eval()
    asked = requests()
    before = LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.9))(model, asked)
    with torch.no_grad():
        direction = model.get_output_embeddings().weight[kit.VOCAB :]
        direction.copy_(model.get_output_embeddings().weight[: len(direction)] * 1000)
    logits = model(input_ids=torch.tensor([asked[0].prompt])).logits[0, -1]
    assert int(logits.argmax()) >= kit.VOCAB
    found = LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.9))(model, asked)
    assert found == before
    assert max(max(r.ids) for r in found) < kit.VOCAB
    assert [(r.ids, r.finished) for r in found] == one_by_one(model, asked, (2,), 0.9)


def test_the_distribution_is_the_tempered_softmax() -> None:
    """4,000 first tokens of one prompt: counts within four standard deviations of the model's probabilities."""
    model = lively(kit.model(4, rows=kit.VOCAB + 6, sharpness=8.0)).eval()
    prompt, n = tuple(range(3, 20)), 4000
    asked = [Request(prompt, ("train", 0, 0, k, "y_prime"), 1) for k in range(n)]
    counts = torch.zeros(kit.VOCAB, dtype=torch.float64)
    for start in range(0, n, 500):
        for r in LocalEngine(Sampling((2,), 0, kit.VOCAB, 0.9))(model, asked[start : start + 500]):
            counts[r.ids[0]] += 1
    p = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1, : kit.VOCAB].detach() / 0.9, -1)
    big = p * n > 20
    assert int(big.sum()) > 5
    z = (counts - n * p)[big] / (n * p * (1 - p))[big].sqrt()
    assert float(z.abs().max()) < 4
    untempered = torch.softmax(0.9 * p.log(), -1)
    z = (counts - n * untempered)[big] / (n * untempered * (1 - untempered))[big].sqrt()
    assert float(z.abs().max()) > 4


def test_a_rollout_reads_its_prompt_once(tmp_path: Path) -> None:
    """With gradient checkpointing too, which would switch the cache off: each new token would read everything again."""
    made = kit.trainer(tmp_path, {"name": "gkd", "lam": 1.0}, forced=False, gradient_checkpointing=True)
    lengths: list[int] = []
    cached: list[int] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if made.phases.now == "rollout":
            lengths.append(kwargs["input_ids"].shape[1])
            cached.append(kwargs.get("cache", kwargs.get("past_key_values")).get_seq_length())

    assert any(getattr(module, "gradient_checkpointing", False) for module in made.student.modules())
    kit.step(made)  # the first rollout of a model tries out its decoding
    made.student.base_model.register_forward_hook(record, with_kwargs=True)
    kit.step(made)
    prefill, *steps = lengths
    assert prefill == max(len(row.x) for row in made.job.rows)
    assert len(steps) == 7 and set(steps) == {1}
    assert cached == [prefill + k for k in range(8)]
    without = prefill * len(lengths) + sum(range(len(lengths)))
    assert without > 4 * sum(lengths)  # positions computed without a cache

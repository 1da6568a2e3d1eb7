"""What every engine of `dudi.rollouts.ENGINES` has to do, tried on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import kit
import pytest
import torch
from kit.architectures import VOCAB, build
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.rollouts import ENGINES, Engine, Request, Sampling, uniforms
from dudi.rollouts.answers import inverse_cdf

SAMPLING = Sampling(stop_ids=(2,), pad=0, vocab=kit.VOCAB, temperature=0.9)
PROMPTS = ((5, 6, 7, 8, 9, 10, 11), (20,), (30, 31, 32), (40, 41, 42, 43, 44, 45, 46, 47, 48))


def requests(limit: int = 12, prompts: Sequence[tuple[int, ...]] = PROMPTS) -> list[Request]:
    return [Request(prompt, ("train", 0, 0, row, "y_tilde"), limit) for row, prompt in enumerate(prompts)]


@pytest.fixture(params=sorted(ENGINES))
def make(request: pytest.FixtureRequest) -> Callable[[Sampling], Engine]:
    return ENGINES[request.param]


@torch.no_grad()
def written_out(model: PreTrainedModel, request: Request, sampling: Sampling) -> tuple[tuple[int, ...], bool]:
    """One rollout without cache, batch or padding: the whole sequence read again for each token."""
    ids: list[int] = []
    model.eval()
    for u in uniforms([request], request.limit)[0]:
        logits = model(input_ids=torch.tensor([[*request.prompt, *ids]])).logits[:, -1, : sampling.vocab]
        if sampling.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            ids.append(int(inverse_cdf(logits / sampling.temperature, torch.tensor([u]))))
        if ids[-1] in sampling.stop_ids:
            return tuple(ids), True
    return tuple(ids), False


@pytest.mark.parametrize("kind", kit.CLASSES)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_rollout_is_what_the_model_says_token_by_token(
    make: Callable[[Sampling], Engine], kind: str, temperature: float
) -> None:
    model, sampling = kit.model(1, kind=kind, tied=False), replace(SAMPLING, temperature=temperature)
    found = make(sampling)(model, requests())
    assert [(r.ids, r.finished) for r in found] == [written_out(model, r, sampling) for r in requests()]
    assert len({token for r in found for token in r.ids}) > 4


def test_a_pure_function_of_weights_prompt_and_key(make: Callable[[Sampling], Engine]) -> None:
    model, engine = kit.model(1, sharpness=2.0), make(SAMPLING)
    first = engine(model, requests())
    torch.manual_seed(123)
    assert engine(model, requests()) == first == make(SAMPLING)(model, requests())
    assert engine(model, requests()[::-1]) == first[::-1], "in the order of the requests"
    moved = [replace(r, key=(*r.key, "other")) for r in requests()]
    assert engine(model, moved) != first
    assert engine(kit.model(2, sharpness=2.0), requests()) != first
    assert engine(model, []) == []


def test_weights_that_change_are_noticed(make: Callable[[Sampling], Engine]) -> None:
    model, engine = kit.model(1, sharpness=2.0), make(SAMPLING)
    before = engine(model, requests())
    model.load_state_dict(kit.model(2, sharpness=2.0).state_dict())
    assert engine(model, requests()) == make(SAMPLING)(kit.model(2, sharpness=2.0), requests()) != before


def test_limits_and_stops(make: Callable[[Sampling], Engine]) -> None:
    model = kit.model(1, sharpness=2.0)
    free = make(replace(SAMPLING, stop_ids=()))(model, requests())
    assert all(len(r.ids) == 12 and not r.finished for r in free), "cut at the limit: nothing is appended"
    stop = free[0].ids[3]
    stopped = make(replace(SAMPLING, stop_ids=(stop,)))(model, requests())
    for one, all_of_it in zip(stopped, free, strict=True):
        at = all_of_it.ids.index(stop) + 1 if stop in all_of_it.ids else 12
        assert one.ids == all_of_it.ids[:at] and one.finished == (stop in all_of_it.ids)
    short = [replace(r, limit=1 + place) for place, r in enumerate(requests())]
    ends = make(replace(SAMPLING, stop_ids=()))(model, short)
    assert [r.ids for r in ends] == [r.ids[: 1 + place] for place, r in enumerate(free)]


def test_modes_are_left_as_they_were(make: Callable[[Sampling], Engine]) -> None:
    """And the model samples in evaluation mode: dropout would be hidden random state."""
    model = build("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    sampling = replace(SAMPLING, vocab=VOCAB, temperature=0.0)
    model.train()
    found = make(sampling)(model, requests())
    assert model.training and all(module.training for module in model.modules())
    assert found == make(sampling)(model.eval(), requests()) and not model.training


def test_padding_of_the_head_is_never_sampled(make: Callable[[Sampling], Engine]) -> None:
    model = kit.model(1, rows=kit.VOCAB + 6, tied=False)
    with torch.no_grad():
        model.lm_head.weight[kit.VOCAB :] = 50 * model.lm_head.weight[5]
    for temperature in (0.0, 0.9):
        found = make(replace(SAMPLING, temperature=temperature))(model, requests())
        assert max(token for r in found for token in r.ids) < kit.VOCAB


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_a_fault(
    make: Callable[[Sampling], Engine], temperature: float, value: float
) -> None:
    """And no token: of NaN a search in cumulated probabilities makes the vocabulary's last."""
    model = kit.model(1, tied=False)
    with torch.no_grad():
        model.base_model.embed_tokens.weight[41] = value  # in the fourth prompt only
    with pytest.raises(DudiError, match=r"^rollouts: .*not finite at new token 1 of prompt 4 of 4 .*0 0 3 y_tilde"):
        make(replace(SAMPLING, temperature=temperature))(model, requests())


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
def test_fully_masked_query_rows_never_matter(make: Callable[[Sampling], Engine], precision: torch.dtype) -> None:
    """Eager attention in float64 makes NaN of the padding on the left; it must not reach a real token."""
    model = kit.model(1, sharpness=2.0, dtype=precision)
    model.set_attn_implementation("eager")
    found = make(SAMPLING)(model, requests())
    assert [(r.ids, r.finished) for r in found] == [written_out(model, r, SAMPLING) for r in requests()]

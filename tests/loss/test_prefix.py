"""Responses to the same prompts, read as one: the hidden states and gradients of separate readings."""

from __future__ import annotations

import random

import kit
import pytest
import torch
from torch import Tensor

from dudi.loss.prefix import together
from dudi.loss.scores import Reading
from dudi.models.reader import Reader, shares_prompts

CPU = torch.device("cpu")


def reading(prompts: list[list[int]], responses: list[list[int]]) -> Reading:
    """As the window's collation makes one."""
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    places = [
        [b * width + t for t in range(len(p) - 1, len(r) - 1)]
        for b, (p, r) in enumerate(zip(prompts, rows, strict=True))
    ]
    table = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    both = (tuple(map(tuple, them)) for them in (prompts, responses))
    return Reading(table, torch.tensor([p for ps in places for p in ps]), *both)


def draw(seed: int, rows: int = 4) -> dict[str, Reading]:
    rng = random.Random(seed)

    def ids(most: int, least: int = 1) -> list[int]:
        return [rng.randrange(3, 60) for _ in range(rng.randint(least, most))]

    prompts = [ids(16, 9) for _ in range(rows)]
    other = [[*p, 7] for p in prompts]
    return {
        "y": reading(prompts, [ids(7) for _ in range(rows)]),
        "y~": reading(other, [ids(7) for _ in range(rows)]),
        "y'": reading(prompts, [ids(7) for _ in range(rows)]),
        "y''": reading(prompts, [ids(7) for _ in range(rows)]),
    }


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("seed", range(3))
def test_hidden_states_and_gradients_are_those_of_separate_readings(seed: int, kind: str) -> None:
    model = kit.model(seed, kind=kind, dtype=torch.float64)
    readings = draw(seed)
    reader = Reader(model, kit.VOCAB, "student")
    size = model.config.hidden_size
    weights = {key: torch.randn(len(one.predicts), size, dtype=torch.float64) for key, one in readings.items()}

    def read(chosen: dict[str, Reading]) -> tuple[dict[str, Tensor], list[Tensor]]:
        model.zero_grad()
        found: dict[str, Tensor] = {}

        def then(hidden: dict[str, Tensor], head: object, zero: Tensor) -> Tensor:
            found.update({key: one.detach() for key, one in hidden.items()})
            return sum(((one * weights[key]).sum() for key, one in hidden.items()), zero)

        reader.reading(model, chosen, len(chosen), then).backward()
        return found, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    apart = [read({key: one}) for key, one in readings.items()]
    as_one, gradients = read(readings)
    for (found, _), key in zip(apart, readings, strict=True):
        torch.testing.assert_close(as_one[key], found[key], rtol=0, atol=1e-10)
    for place, gradient in enumerate(gradients):
        wanted = torch.stack([gs[place] for _, gs in apart]).sum(0)
        assert (gradient - wanted).norm() <= 1e-6 * wanted.norm(), "norms are in float32 whatever the model is in"


def test_only_the_same_prompts_are_read_together() -> None:
    readings = draw(5)
    found = together(readings)
    assert list(found) == list(readings)
    assert found["y~"] is readings["y~"]
    tables = {id(found[key].input_ids) for key in ("y", "y'", "y''")}
    assert len(tables) == 1 and found["y"].mask is not None
    assert found["y"].input_ids.numel() < sum(readings[key].input_ids.numel() for key in ("y", "y'", "y''"))
    one = reading([[1, 2], [3, 4]], [[5], [6]])
    for other in (
        reading([[1, 2], [3, 5]], [[5], [6]]),
        reading([[1, 2]], [[5]]),
        reading([[1, 2], [3]], [[5], [4, 6]]),
    ):
        assert all(a is b for a, b in zip(together({0: one, 1: other}).values(), (one, other), strict=True))


@pytest.mark.parametrize("prompt, response, shared", [(100, 60, True), (40, 32, True), (8, 60, False), (8, 400, False)])
def test_responses_much_longer_than_their_prompt_are_read_by_themselves(
    prompt: int, response: int, shared: bool
) -> None:
    given = {key: reading([[3] * prompt] * 2, [[4] * response, [5] * response]) for key in (0, 1)}
    found = together(given)
    assert (found[0].input_ids is found[1].input_ids) is shared
    assert shared or all(found[key] is given[key] for key in given)


@pytest.mark.parametrize("rope, shares", [("default", True), ("yarn", True), ("dynamic", False), ("longrope", False)])
def test_rotations_that_follow_the_length_are_not_those_of_a_longer_sequence(rope: str, shares: bool) -> None:
    model = kit.model(0, kind="llama")
    assert shares_prompts(model)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": rope}
    assert shares_prompts(model) is shares


def test_a_response_sees_its_prompt_and_itself() -> None:
    x, y, other = [1, 2, 3], [4, 5], [6]
    joined = together({0: reading([x], [y]), 1: reading([x], [other])})
    assert joined[0].input_ids.tolist() == [x + y + other]
    assert joined[0].mask is not None and joined[0].positions is not None
    assert joined[0].positions.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert joined[0].mask[0, 0, -1].tolist() == [True, True, True, False, False, True]
    assert joined[0].predicts.tolist() == [2, 3] and joined[1].predicts.tolist() == [2]

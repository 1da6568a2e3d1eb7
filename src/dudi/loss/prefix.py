"""Responses to the same prompts, read as one: x is read once for (x, y) and (x, y').

The sequences of several readings become one: the prompt, then each response, which sees the prompt and itself and has
the positions that it has when it is read alone. Hidden states are those of separate readings up to rounding.

Shapes: B sequences, L their padded length, N response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dudi.loss.scores import Reading

Key = TypeVar("Key")


def together(readings: Mapping[Key, Reading]) -> dict[Key, Reading]:
    """The same readings; those of the same prompts share one table, which is read once."""
    groups: list[list[Key]] = []
    for key, reading in readings.items():
        own = next((group for group in groups if _same_prompts(readings[group[0]], reading)), None)
        if own is None:
            groups.append([key])
        else:
            own.append(key)
    found: dict[Key, Reading] = {}
    for group in groups:
        chosen = [readings[key] for key in group]
        found |= dict(zip(group, chosen if len(group) == 1 else _joined(chosen), strict=True))
    return {key: found[key] for key in readings}


def _same_prompts(one: Reading, other: Reading) -> bool:
    if one.prompts is None or other.prompts is None or not torch.equal(one.prompts, other.prompts):
        return False
    width = int(one.prompts.max())
    inside = torch.arange(width, device=one.prompts.device) < one.prompts[:, None]
    return bool(((one.input_ids[:, :width] == other.input_ids[:, :width]) | ~inside).all())


def _joined(readings: Sequence[Reading]) -> list[Reading]:
    """Readings of one table: prompt, first response, second response, ..., padding."""
    first = readings[0]
    assert first.prompts is not None and first.lengths is not None
    starts, ends = [first.prompts], [first.lengths]
    for reading in readings[1:]:
        assert reading.prompts is not None and reading.lengths is not None
        starts.append(ends[-1])
        ends.append(ends[-1] + reading.lengths - reading.prompts)
    width = int(ends[-1].max())
    place = torch.arange(width, device=first.prompts.device)[None]
    response = torch.zeros_like(place).expand(len(first.prompts), -1).clone()
    position = place.expand_as(response).clone()
    ids = first.input_ids.new_zeros(response.shape)
    ids[:, : first.input_ids.shape[1]] = first.input_ids[:, :width]
    for number, (reading, start, end) in enumerate(zip(readings, starts, ends, strict=True), 1):
        inside = (place >= start[:, None]) & (place < end[:, None])
        own = place - start[:, None] + first.prompts[:, None]  # the place of these tokens in their own reading
        response = torch.where(inside, number, response)
        position = torch.where(inside, own, position)
        taken = reading.input_ids.gather(1, own.clamp(0, reading.input_ids.shape[1] - 1))
        ids = torch.where(inside, taken, ids)
    response = torch.where(place >= ends[-1][:, None], -1, response)
    position = torch.where(response < 0, 0, position)
    ids = torch.where(response < 0, 0, ids)
    sees = (response[:, None, :] == 0) | (response[:, None, :] == response[:, :, None])
    mask = (sees & (place[:, None, :] <= place[:, :, None]))[:, None]
    return [
        Reading(ids, _moved(reading, start, width), reading.prompts, reading.lengths, position, mask)
        for reading, start in zip(readings, starts, strict=True)
    ]


def _moved(reading: Reading, start: Tensor, width: int) -> Tensor:
    """Where the predicting positions of a reading lie in the joined table."""
    assert reading.prompts is not None
    row = reading.predicts // reading.input_ids.shape[1]
    place = reading.predicts % reading.input_ids.shape[1]
    prompt = reading.prompts[row]
    return row * width + torch.where(place < prompt, place, place - prompt + start[row])

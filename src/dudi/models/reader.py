"""A model that reads: hidden states of readings, its output head, a copy that decodes; sharded over processes or not.

The step and the evaluation ask a `Reader`, and know nothing of wrappers, backbones or FSDP2. What sharding asks for is
in here: every process calls a sharded model equally often, in the same order, and its weights are whole only inside
such a call.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dudi.loss.head import Head
from dudi.loss.prefix import together
from dudi.loss.scores import Reading, all_states, hidden_states
from dudi.models.adapter import is_adapted, merge_again, merged
from dudi.models.fused import FAMILY, is_plain_config
from dudi.models.parts import backbone, head_of
from dudi.models.probe import check_decoding, check_head, check_reading
from dudi.models.sharding import copy_weights, is_sharded, through, whole, whole_copy
from dudi.models.swapped import As, adapter_of, read, with_weights

Key = TypeVar("Key")
Result = TypeVar("Result")
_OF_A_COPY = {"_name_or_path", "architectures", "distributed_config", "dtype", "transformers_version"}
"""What a config says of the copy that was loaded, and not of the model."""


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's contents, in its own dtype."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(cast(Any, flat.view(torch.uint8).numpy()))


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether a model reads several responses to one prompt in one sequence: it takes a mask of what sees what, all its
    layers look back at all tokens, and no token is rotated by the sequence's length."""
    reads = cast(Any, backbone(model))
    full = all(one == "full_attention" for one in getattr(reads.config, "layer_types", None) or ())
    return type(reads) in FAMILY and full and is_plain_config(reads.config)


class Reader:
    """A causal language model as the losses see it, over the first `vocab` entries of its vocabulary.

    what: its name in errors; within: what makes an adapted student the model that is meant (`dudi.models.swapped`).
    Raises `DudiError` for a model that cannot be read so (see `dudi.models.probe`).
    """

    def __init__(self, model: PreTrainedModel, vocab: int, what: str, within: As = nullcontext) -> None:
        with within():
            check_head(model, vocab, what)
            check_reading(model, vocab, what)
            check_decoding(model, vocab, what)
        self.model = model
        self.vocab = vocab
        self.within = within

    @property
    def lockstep(self) -> bool:
        """Whether all processes have to call this model equally often."""
        return is_sharded(self.model)

    @torch.no_grad()
    def head(self) -> Head:
        """The head, whole on this process, for use outside of a call: of a frozen model."""
        head = head_of(self.model, self.vocab)
        return replace(head, weight=whole(head.weight), bias=None if head.bias is None else whole(head.bias))

    @torch.no_grad()
    def fingerprint(self) -> str:
        """The SHA-256 of all that its answers depend on: weights, buffers, configuration, vocabulary."""
        config = self.model.config.to_dict()
        about = {key: config[key] for key in sorted(config.keys() - _OF_A_COPY)}
        digest = hashlib.sha256(json.dumps([self.vocab, about], default=str).encode())
        with self.within():
            for name, tensor in read(self.model):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(as_bytes(whole(tensor)))
        return digest.hexdigest()

    @torch.no_grad()
    def hidden(self, readings: Mapping[Key, Reading], most: int) -> dict[Key, Tensor]:
        """Last hidden states [N, H] of each reading, without gradients. most: of readings on any process."""
        if not readings and not self.lockstep:
            return {}
        return self.reading(self.model, readings, most, lambda hidden, head, zero: hidden)

    def reading(
        self,
        wrapper: nn.Module,
        readings: Mapping[Key, Reading],
        most: int,
        then: Callable[[dict[Key, Tensor], Head, Tensor], Result],
    ) -> Result:
        """`then(hidden states by reading, head, zero)`, evaluated inside one call of the model through its wrapper
        (DDP, or the model itself): only there DDP reduces gradients and FSDP2 gathers weights.

        zero: to be added to the loss. It touches every parameter where this process has nothing to read, or fewer
        readings than the others, so that what they reduce together is reduced here too.
        """

        def forward() -> Result:
            hidden = self._read(readings)
            missing = most - len(readings) if self.lockstep else int(not readings)
            zero = self._idle(missing)
            head = head_of(self.model, self.vocab)  # of a sharded model, whole only after its backbone was called
            return then(hidden, head, zero if readings else zero + 0.0 * head.weight.sum())

        with self.within():
            return through(wrapper, self.model, forward)

    def _read(self, readings: Mapping[Key, Reading]) -> dict[Key, Tensor]:
        """Hidden states of each; those of the same prompts in one call, where the model can and no process waits for
        another's calls."""
        chosen = together(readings) if shares_prompts(self.model) and not self.lockstep else readings
        tables: dict[int, list[Key]] = {}
        for key, reading in chosen.items():
            tables.setdefault(id(reading.input_ids), []).append(key)
        found: dict[Key, Tensor] = {}
        for keys in tables.values():
            states = all_states(backbone(self.model), chosen[keys[0]])
            found |= {key: states.index_select(0, chosen[key].predicts) for key in keys}
        return {key: found[key] for key in chosen}

    def _idle(self, calls: int) -> Tensor:
        """A zero that has called the model so often: what a process does while others have views that it has not."""
        device = self.model.get_output_embeddings().weight.device
        zero = torch.zeros((), device=device)
        one = torch.zeros(1, dtype=torch.long, device=device)
        for _ in range(calls):
            zero = zero + 0.0 * hidden_states(backbone(self.model), Reading(one[None], one)).sum()
        return zero


class EmaTeacher:
    """SDFT's teacher: a moving average of the student, in the student's own precision (float32).

    teacher <- (1 - rate) teacher + rate student, after each optimizer step. It is whole on each process, also where the
    student is sharded. Of an adapter it is the average of the adapter's own weights: the student itself, while these
    are in it (`within`).
    """

    def __init__(self, student: PreTrainedModel, rate: float) -> None:
        self.rate, self.adapted = rate, is_adapted(student)
        self.model = student if self.adapted else whole_copy(student)
        self._own: dict[str, Tensor] = adapter_of(student) if self.adapted else dict(self.model.named_parameters())
        self.within: As = partial(with_weights, student, self._own) if self.adapted else nullcontext

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """One step of the average."""
        for name, mine in self._own.items():
            mine.lerp_(whole(student.get_parameter(name).detach()).to(mine.dtype), self.rate)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; tied weights once."""
        return {name: p.detach().contiguous() for name, p in self._own.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, p in self._own.items():
            p.copy_(state[name])


class DecodingCopy:
    """The weights that decode: the student itself, or a copy of it, refreshed once a step.

    It is a copy in bfloat16 under autocast, and one that is whole on each process where the student is sharded: answers
    end at different lengths, so that the processes do not decode in step. Of an adapted student it is the model that
    its adapter makes, in few operations. samples: whether anything is decoded at all.
    """

    def __init__(self, student: PreTrainedModel, samples: bool, bf16: bool) -> None:
        self.student = student
        self.copy: PreTrainedModel | None = None
        self.adapted = is_adapted(student)
        if samples and self.adapted:
            self.copy = merged(student, torch.bfloat16 if bf16 else student.dtype, student.device)
        elif samples and (bf16 or is_sharded(student)):
            self.copy = whole_copy(student)
            if bf16:
                for p in self.copy.parameters():  # not its buffers: the rotary frequencies stay float32, as in training
                    p.data = p.data.bfloat16()

    @torch.no_grad()
    def refreshed(self) -> PreTrainedModel:
        """The model to sample from, with the student's present weights."""
        if self.copy is None:
            return self.student
        if self.adapted:
            merge_again(self.copy, self.student)
        else:
            copy_weights(self.copy, self.student)
        return self.copy

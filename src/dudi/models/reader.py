"""A model that reads: hidden states of readings, its output head, a copy that decodes; sharded over processes or not.

The step and the evaluation ask a `Reader`, and know nothing of wrappers, backbones or FSDP2. What sharding asks for is
in here: every process calls a sharded model equally often, in the same order, and its weights are whole only inside
such a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dudi.errors import DudiError
from dudi.loss.head import Head
from dudi.loss.scores import Reading, hidden_states
from dudi.models.sharding import copy_weights, is_sharded, plain_type, through, whole, whole_copy

Key = TypeVar("Key")
Result = TypeVar("Result")


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head: token ids -> last hidden states."""
    return model.base_model


class Reader:
    """A causal language model as the losses see it, over the first `vocab` entries of its vocabulary.

    what: its name in errors. Raises `DudiError` for a model whose logits are not its hidden states times its head.
    """

    def __init__(self, model: PreTrainedModel, vocab: int, what: str) -> None:
        check_head(model, vocab, what)
        self.model = model
        self.vocab = vocab

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
            hidden = {key: hidden_states(backbone(self.model), reading) for key, reading in readings.items()}
            missing = most - len(readings) if self.lockstep else int(not readings)
            zero = self._idle(missing)
            head = head_of(self.model, self.vocab)  # of a sharded model, whole only after its backbone was called
            return then(hidden, head, zero if readings else zero + 0.0 * head.weight.sum())

        return through(wrapper, self.model, forward)

    def _idle(self, calls: int) -> Tensor:
        """A zero that has called the model so often: what a process does while others have views that it has not."""
        device = self.model.get_output_embeddings().weight.device
        zero = torch.zeros((), device=device)
        one = torch.zeros(1, dtype=torch.long, device=device)
        for _ in range(calls):
            zero = zero + 0.0 * hidden_states(backbone(self.model), Reading(one[None], one)).sum()
        return zero


def check_size(embeddings: int, vocab: int, what: str) -> None:
    """Raises `DudiError` for a model that has no embedding for some token."""
    if embeddings < vocab:
        raise DudiError(
            f"{what}: the model has {embeddings} embeddings, but the tokenizer has {vocab} tokens; use the model's own"
            " tokenizer"
        )


def head_of(model: PreTrainedModel, vocab: int) -> Head:
    """The model's output head, over the first `vocab` entries. `check_head` has been called once for this model.

    A sharded model has one only inside its forward (see `Reader.reading`), after its backbone was called.
    """
    linear = model.get_output_embeddings()
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, vocab, scale, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def check_head(model: PreTrainedModel, vocab: int, what: str) -> None:
    """Refuse, with `DudiError`, a model whose logits `head_of` cannot give.

    Losses are evaluated from hidden states and the head, so it is probed once that both give the model's own logits:
    the head must be linear, up to a scale and a softcap.
    """
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or plain_type(linear) is not nn.Linear:
        raise DudiError(f"{what}: the output head is a {type(linear).__name__}, expected a plain linear layer")
    check_size(linear.weight.shape[0], vocab, what)
    ids = torch.arange(min(8, vocab), device=linear.weight.device)[None]
    reading = Reading(ids, torch.arange(ids.shape[1], device=ids.device))

    def probe() -> tuple[Tensor, Tensor, Head]:
        logits = type(model).forward(model, input_ids=ids, use_cache=False).logits[0, :, :vocab]
        hidden = hidden_states(backbone(model), reading)
        head = head_of(model, vocab)
        return logits, head.logits(hidden), head

    training = model.training
    model.eval()
    wanted, got, head = through(model, model, probe)
    model.train(training)
    if not bool(torch.isfinite(wanted).all()):
        raise DudiError(f"{what}: the model's logits are not finite: its weights are broken (NaN or infinite)")
    tolerance = 2e-2 if head.weight.dtype is torch.bfloat16 else 1e-4
    if not torch.allclose(got, wanted.to(got.dtype), rtol=tolerance, atol=tolerance * float(wanted.abs().max())):
        raise DudiError(f"{what}: the model's logits are not its last hidden states times its output head; unsupported")


class EmaTeacher:
    """SDFT's teacher: a moving average of the student, in the student's own precision (float32).

    teacher <- (1 - rate) teacher + rate student, after each optimizer step. It is whole on each process, also where the
    student is sharded.
    """

    def __init__(self, student: PreTrainedModel, rate: float) -> None:
        self.rate = rate
        self.model = whole_copy(student)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """One step of the average."""
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.lerp_(whole(theirs.detach()).to(mine.dtype), self.rate)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save; tied weights once."""
        return {name: p.detach().contiguous() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        for name, p in self.model.named_parameters():
            p.copy_(state[name])


class DecodingCopy:
    """The weights that decode: the student itself, or a copy of it, refreshed once a step.

    It is a copy in bfloat16 under autocast, and one that is whole on each process where the student is sharded: answers
    end at different lengths, so that the processes do not decode in step. samples: whether anything is decoded at all.
    """

    def __init__(self, student: PreTrainedModel, samples: bool, bf16: bool) -> None:
        self.student = student
        self.copy: PreTrainedModel | None = None
        if samples and (bf16 or is_sharded(student)):
            self.copy = whole_copy(student)
            if bf16:
                for p in self.copy.parameters():  # not its buffers: the rotary frequencies stay float32, as in training
                    p.data = p.data.bfloat16()

    @torch.no_grad()
    def refreshed(self) -> PreTrainedModel:
        """The model to sample from, with the student's present weights."""
        if self.copy is None:
            return self.student
        copy_weights(self.copy, self.student)
        return self.copy

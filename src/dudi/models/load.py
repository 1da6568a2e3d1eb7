"""Student, teacher and reference: loading, output heads, the moving-average teacher, the copy that decodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dudi.errors import DudiError
from dudi.loss.chunked import Head
from dudi.loss.scores import Reading, hidden_states
from dudi.models.files import cannot_load, check_config, check_weights, local_folder, reading_model
from dudi.models.sharding import copy_weights, is_sharded, over, plain_type, through, whole, whole_copy
from dudi.recipe.read import Generation, Models


def device() -> torch.device:
    """Where this process computes: its GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def arithmetic(precision: str) -> tuple[torch.dtype, torch.dtype, bool]:
    """(dtype of the student's weights, dtype of frozen models, bfloat16 autocast) of `models.precision`."""
    if precision == "float64":
        return torch.float64, torch.float64, False
    bf16 = precision == "bfloat16" or (precision == "auto" and torch.cuda.is_available())
    return torch.float32, torch.bfloat16 if bf16 else torch.float32, bf16


def load_tokenizer(path: str, what: str, models: Models, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the hub; `what` names the recipe key in errors."""
    return _load(AutoTokenizer.from_pretrained, path, what, models, revision)


def check_model(path: str, what: str, models: Models, revision: str | None, vocab: int) -> None:
    """That a model is there, has the tokenizer's size, and weights that can be loaded as far as they are on this disk,
    before a run folder is made and gigabytes are read. Raises `DudiError`.
    """
    config = _load(AutoConfig.from_pretrained, path, what, models, revision)
    with reading_model(path, what):
        folder = local_folder(path, revision)
        fetched = is_offline_mode() or Path(path).expanduser().is_dir()  # what is not there will not come
        if folder is not None and fetched and not any(f.suffix in (".safetensors", ".bin") for f in folder.iterdir()):
            raise DudiError(f"{what}: {path!r} holds no weights (.safetensors)")
        _check_size(config.get_text_config().vocab_size, vocab, what)
        if folder is not None:
            check_weights(folder, what, models.trust_remote_code, partial=not fetched)


def _check_size(embeddings: int, vocab: int, what: str) -> None:
    if embeddings < vocab:
        raise DudiError(
            f"{what}: the model has {embeddings} embeddings, but the tokenizer has {vocab} tokens; use the model's own"
            " tokenizer"
        )


def load_model(
    path: str,
    what: str,
    models: Models,
    dtype: torch.dtype,
    revision: str | None = None,
    frozen: bool = True,
    processes: int = 1,
) -> PreTrainedModel:
    """A causal language model from a folder or the hub, on this process's device, or sharded over several `processes`.

    The dtype is set on purpose: `from_pretrained` would take the checkpoint's, and a bfloat16 student at a learning
    rate of 2e-5 rounds most of its updates away. Weights that do not fit the config are an error: the loader would
    make up the missing ones.
    """
    model, found = _load(
        AutoModelForCausalLM.from_pretrained,
        path,
        what,
        models,
        revision,
        dtype=dtype,
        attn_implementation=models.attention,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **({"distributed_config": over(processes)} if processes > 1 else {}),
    )
    missing = sorted([*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])])
    if missing:
        raise DudiError(
            f"{what}: {path!r}: the weights do not fit its config.json: {missing[0]!r} is missing or of another shape"
            f" ({len(missing)} such)"
        )
    if not is_sharded(model):
        model.to(device())
    if frozen:
        model.requires_grad_(False)
        model.eval()
    return model


def _load(load: Any, path: str, what: str, models: Models, revision: str | None, **kwargs: Any) -> Any:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise DudiError(f"{what}: no folder {path!r}; give a model folder or a hub name such as Qwen/Qwen2.5-0.5B")
    name = str(Path(path).expanduser()) if looks_local else path
    if Path(name).is_dir():
        check_config(Path(name), what)
    try:
        return load(name, revision=revision, trust_remote_code=models.trust_remote_code, **kwargs)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # `faults.memory` says what to lower
    except Exception as error:  # of a strange config.json the library makes a TypeError, an AttributeError, anything
        for cause in (error, error.__cause__, error.__context__):
            if isinstance(cause, (GatedRepoError, HfHubHTTPError)):
                raise DudiError(f"{what}: {path!r}: {gated_help(path, cause)}") from None
        raise cannot_load(path, what, error) from None


def gated_help(path: str, error: Exception) -> str:
    """What to do about a refused download."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return (
            f"the hub refuses access: accept the terms on https://huggingface.co/{path}, then give a token with"
            " `hf auth login` or HF_TOKEN"
        )
    return f"the hub answered {status or type(error).__name__}; check the name, the revision and the connection"


def head_of(model: PreTrainedModel, vocab: int) -> Head:
    """The model's output head, over the first `vocab` entries. `check_head` has been called once for this model.

    A sharded model has one only inside its forward (see `sharding.through`), after its backbone was called.
    """
    linear = model.get_output_embeddings()
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, linear.bias, vocab, scale, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def whole_head(model: PreTrainedModel, vocab: int) -> Head:
    """The head of a frozen model that may be sharded, to be used outside its forward."""
    head = head_of(model, vocab)
    return replace(head, weight=whole(head.weight), bias=None if head.bias is None else whole(head.bias))


@torch.no_grad()
def check_head(model: PreTrainedModel, vocab: int, what: str) -> None:
    """Refuse, with `DudiError`, a model whose logits `head_of` cannot give.

    Losses are evaluated from hidden states and the head, so it is probed once that both give the model's own logits:
    the head must be linear, up to a scale and a softcap.
    """
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear) or plain_type(linear) is not nn.Linear:
        raise DudiError(f"{what}: the output head is a {type(linear).__name__}, expected a plain linear layer")
    _check_size(linear.weight.shape[0], vocab, what)
    ids = torch.arange(min(8, vocab), device=linear.weight.device)[None]
    reading = Reading(ids, torch.arange(ids.shape[1], device=ids.device))

    def probe() -> tuple[Tensor, Tensor, Head]:
        logits = type(model).forward(model, input_ids=ids, use_cache=False).logits[0, :, :vocab]
        hidden = hidden_states(model.base_model, reading)
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


def write_generation_config(
    model: PreTrainedModel, generation: Generation, stop_ids: tuple[int, ...], pad: int
) -> None:
    """Set the model's generation config on purpose: evaluators take their sampling and stops from the saved file."""
    sampling = {"temperature": generation.temperature, "top_p": generation.top_p} if generation.do_sample else {}
    model.generation_config = GenerationConfig(
        do_sample=generation.do_sample,
        max_new_tokens=generation.max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad,
        **sampling,
    )

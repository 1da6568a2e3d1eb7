"""Student, teacher and reference as files: checked, loaded, and what the result says of how it generates."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from dudi.errors import DudiError
from dudi.models.files import check_layers, check_weights, local_folder, reading_model
from dudi.models.parts import check_size
from dudi.models.refusals import cannot_load, check_folder, check_kind, has_tokenizer, looks_local
from dudi.models.sharding import is_sharded, over
from dudi.recipe.schema import Generation, Models


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
    tokenizer = _load(AutoTokenizer.from_pretrained, path, what, models, revision)
    if isinstance(tokenizer.chat_template, dict):  # templates by name, of which `apply_chat_template` takes this one
        if "default" not in tokenizer.chat_template:
            names = ", ".join(map(repr, sorted(tokenizer.chat_template)))
            raise DudiError(
                f"{what}: {path!r} has chat templates by name ({names}), but none called 'default': write the one to"
                " use to a file and name it as chat.template"
            )
        tokenizer.chat_template = tokenizer.chat_template["default"]
    return tokenizer


def own_tokenizer(path: str, what: str, models: Models) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model that needs none, since it is read with another's; None where it has none, or is not on
    this disk."""
    folder = local_folder(path, None)
    return load_tokenizer(path, what, models) if folder is not None and has_tokenizer(folder) else None


def load_config(path: str, what: str, models: Models, revision: str | None = None) -> Any:
    """A model's config from a folder or the hub."""
    return _load(AutoConfig.from_pretrained, path, what, models, revision)


def embeddings(config: Any, path: str, what: str) -> int:
    """How many token ids a model can read, by its config."""
    with reading_model(path, what):
        return int(config.get_text_config().vocab_size)


def eos_ids(config: Any, path: str, what: str, revision: str | None, special: Container[int]) -> tuple[int, ...]:
    """What a model's own generation config stops at; its config, where it has none: as the library reads them.

    special: ids that are no ordinary text. One that is counts only if somebody chose it: a config class's default (2 of
    Llama's) says nothing about another tokenizer.
    """
    with reading_model(path, what):
        config = config.get_text_config()
        unchosen = _listed(getattr(type(config)(), "eos_token_id", None))
        folder = Path(path).expanduser()
        file = cached_file(
            str(folder) if folder.is_dir() else path,
            "generation_config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
        )
    found = getattr(config, "eos_token_id", None)
    if file is not None:
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError, RecursionError):
            raise DudiError(f"{what}: {path!r}: generation_config.json is no JSON table") from None
    ids = _listed(found)
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise DudiError(
            f"{what}: {path!r}: generation_config.json: eos_token_id: expected token ids, found {found!r:.80}"
        )
    return tuple(id for id in ids if id in special or id not in unchosen)


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def check_model(
    config: Any, path: str, what: str, models: Models, revision: str | None, vocab: int, trained: bool = False
) -> None:
    """That a model is there, has an embedding for every token, and weights that can be loaded as far as they are on
    this disk, before a run folder is made and gigabytes are read.

    vocab: of the tokenizer, as `Chat.limit` left it; trained: its weights are to be changed. Raises `DudiError`.
    """
    with reading_model(path, what):
        folder = local_folder(path, revision)
        fetched = is_offline_mode() or Path(path).expanduser().is_dir()  # what is not there will not come
        check_kind(config, path, what, trained)
        check_size(embeddings(config, path, what), vocab, what)
        if folder is not None:
            check_weights(folder, config, what, models.trust_remote_code, partial=not fetched)


def load_model(
    path: str,
    what: str,
    models: Models,
    dtype: torch.dtype,
    revision: str | None = None,
    frozen: bool = True,
    processes: int = 1,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """A causal language model from a folder or the hub, on this process's device, or sharded over several `processes`;
    its linear layers in 8 or 4 bits, if told so.

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
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **({} if models.attention is None else {"attn_implementation": models.attention}),
        **({"distributed_config": over(processes)} if processes > 1 else {}),
        **({} if quantization is None else {"quantization_config": quantization, "device_map": {"": device()}}),
    )
    where = f"{what}: {path!r}: the weights do not fit its config.json"
    missing = sorted([*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])])
    if missing:
        raise DudiError(f"{where}: {missing[0]!r} is missing or of another shape ({len(missing)} such)")
    check_layers(found["unexpected_keys"], model.state_dict(), where)
    if not model.all_tied_weights_keys:  # the weights have a head of their own, whatever the config says of it
        for config in (model.config, model.config.get_text_config(decoder=True)):
            if getattr(config, "tie_word_embeddings", False):
                config.tie_word_embeddings = False
    if not is_sharded(model) and quantization is None:
        model.to(device())
    if frozen:
        model.requires_grad_(False)
        model.eval()
    return model


def _load(load: Any, path: str, what: str, models: Models, revision: str | None, **kwargs: Any) -> Any:
    if looks_local(path):
        check_folder(Path(path).expanduser(), path, what, tokenizer=load == AutoTokenizer.from_pretrained)
    name = str(Path(path).expanduser()) if looks_local(path) else path
    try:
        return load(name, revision=revision, trust_remote_code=models.trust_remote_code, **kwargs)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # `faults.memory` says what to lower
    except Exception as error:  # of a strange config.json the library makes a TypeError, an AttributeError, anything
        raise cannot_load(path, what, error) from None


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

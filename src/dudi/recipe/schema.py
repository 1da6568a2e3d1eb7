"""The schema of a recipe: every table and key, its type, default and meaning. `dudi.recipe.read` reads the files."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dudi.methods import Method, build_method
from dudi.recipe.data import Data
from dudi.recipe.fields import (
    Equalize,
    Probability,
    Quantization,
    Section,
    TargetModules,
    TemplateValue,
    Url,
    check_codes,
)
from dudi.strict import PerLanguage, Text, shown


class Models(Section):
    """Folders or hub names of the checkpoints."""

    student: Text
    """The checkpoint that is trained."""
    teacher: Text | None = None
    """The checkpoint that teaches; none for methods without one."""
    student_revision: str | None = None
    """On the hub: a branch, tag or commit."""
    teacher_revision: str | None = None
    """The same of the teacher."""
    trust_remote_code: bool = False
    """Run the code that comes with a checkpoint. Read it first."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Arithmetic. `auto` is bfloat16 autocast on a GPU and float32 elsewhere; the student's own weights are float32
    (float64 under `float64`) in every case, since bfloat16 rounds most updates of a small learning rate away."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    """How attention is computed; none: what transformers chooses for the model (`sdpa` where it has it)."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the run's result is saved in. Results of earlier stages, which later ones start from, stay as trained."""
    teacher_sharding: Literal["replicate", "shard"] = "replicate"
    """On several processes: a whole frozen teacher on each device, or its weights spread over them, for one that does
    not fit."""
    teacher_quantization: Quantization | None = None
    """Keep the teacher's linear layers in 8 or 4 bits, by bitsandbytes, which is not installed with dudi
    (docs/adapters.md)."""


class Adapter(Section):
    """Train an adapter, not the student's own weights (docs/adapters.md). Its keys have the names of peft, which has to
    be installed (`dudi[peft]`). Each stage trains a new one and merges it. It has no dropout."""

    r: PositiveInt = 16
    """The rank of A and B."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """B A counts `lora_alpha / r` times."""
    target_modules: TargetModules = "all-linear"
    """Which linear layers have one: `all-linear`, or names such as `["q_proj", "v_proj"]`. Never the head."""
    use_rslora: bool = False
    """Rank-stabilised: `lora_alpha / sqrt(r)` times."""
    use_dora: bool = False
    """DoRA: a weight's direction by A and B, its length by a vector of its own."""
    quantization: Literal["4bit"] | None = None
    """Keep the linear layers beneath in 4 bits (QLoRA), by bitsandbytes. Each stage goes on with the adapter of the one
    before."""


class Chat(Section):
    """How messages become token ids."""

    template: str = "teacher"
    """`teacher`, `student`, or the path of a Jinja file. Base models, as students are, have none of their own."""
    kwargs: dict[str, TemplateValue] = {}
    """Passed to the template, such as `enable_thinking = false` or `date_string = "26 Jul 2024"`. They go into the
    result's own template, so that it is asked as it was trained."""
    merge_system: bool = False
    """Put a system turn's text at the head of the first user turn: for templates that refuse one, such as Gemma's."""


LimitName = Literal["prompt", "verbalizer", "total", "rollout", "teacher_prompt"]


class Limits(Section):
    """Lengths in tokens (paper, appendix B). Each may be a table by language."""

    prompt: PerLanguage = 768
    """x; a longer one leaves the row out."""
    verbalizer: PerLanguage | None = None
    """What p_z may add to x; by default, by language, what it adds at most with this tokenizer, so that none is too
    long."""
    total: PerLanguage = 1024
    """x + y; a longer y is cut on the right, without EOS."""
    rollout: PerLanguage = 256
    """New tokens of y' and y~, and of a teacher's answer."""
    teacher_prompt: PerLanguage = 4096
    """z; a longer one leaves that row's on-policy term out."""

    def of(self, name: LimitName, language: str) -> int:
        """The limit that holds for one language, in tokens; 0 for what p_z adds, where that is not known."""
        value = getattr(self, name)
        if value is None:
            return 0
        return int(value) if isinstance(value, int) else int(value.get(language, value["default"]))

    @model_validator(mode="after")
    def _default_given(self) -> Limits:
        for name in Limits.model_fields:
            value = getattr(self, name)
            if isinstance(value, dict):
                if "default" not in value:
                    raise ValueError(f"{name}: a table by language needs a `default`")
                check_codes([key for key in value if key != "default"], f"{name}: ")
        return self


class Rollouts(Section):
    """Sampling of y', y~ and teacher answers."""

    engine: Text = "local"
    """What samples: `local` is the trainer's own process, on its own weights."""
    temperature: Annotated[float, Field(gt=0)] = 0.9
    """Of the softmax that responses are drawn from."""
    cuda_graph: bool = False
    """Decode each step as a CUDA graph: for whole models of the classes Llama, Qwen2 and Qwen3. Never run on a device
    by the authors so far."""
    server: Url | None = None
    """What writes the answers of a generation stage (SeqKD, SPIN), instead of this process: an OpenAI-compatible server
    that takes and returns token ids, such as `http://localhost:8000/v1` of vLLM (docs/server.md)."""
    server_model: Text | None = None
    """The name that the server has for the model that answers; none: the one served from that model's path or name."""
    server_requests: PositiveInt = 32
    """At most so many answers are waited for at a time, by all processes together."""


class Training(Section):
    """The optimizer step (paper, appendix B, and the defaults of the trainer it used)."""

    lr: Annotated[float, Field(ge=0)] = 2e-5
    """The peak learning rate of AdamW."""
    batch: PositiveInt = 32
    """Rows of one optimizer step, over all ranks."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the rows, where `max_steps` is not given."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, in place of `epochs`."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """A constant one lets a finished run be extended: `--resume --set training.max_steps=...`."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """A longer gradient is scaled down to this norm."""
    equalize: Equalize = "none"
    """The languages' shares of each step's loss (docs/equations.md). `none`: a language counts by its tokens, as in the
    paper; `tokens`: all count alike, however many tokens they have; or a table of shares, `{id = 2, my = 1}`."""
    micro_batch: PositiveInt = 8
    """At most so many rows of one rank at a time. It changes memory; the loss and gradient of a step stay the same up
    to rounding."""
    micro_batch_tokens: PositiveInt = 16_384
    """At most so many padded student tokens at a time (one row always fits)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    dropout: bool = False
    """Dropout stays as the model's config has it; for SFT and DFT only. What is distilled or compared has none."""
    head_chunk: PositiveInt = 256
    """Response positions projected to the vocabulary at a time."""
    log_every: PositiveInt = 10
    """Steps of a logging interval."""
    report_to: tuple[Text, ...] = ()
    """Trackers that are told of each interval, beside metrics.jsonl: `tensorboard`, `wandb`, `trackio`, `mlflow`
    (docs/tracking.md). Their packages are not installed with dudi."""
    overlap_every: Annotated[int, Field(ge=0)] = 50
    """Steps between measurements of overlap@16 and entropies; 0: never."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations on the rows held out; 0: at the end of the training only, which is always done."""
    save_every: PositiveInt = 500
    """Steps between checkpoints (weights, optimizer, schedule); one is saved at the end of the training, too."""
    keep_checkpoints: PositiveInt = 2
    """So many of the newest stay. Once the next stage has begun, a finished one keeps its `model/` alone."""
    cache: Literal["off", "memory", "disk"] = "off"
    """Where the teacher's hidden states and the reference's log-probabilities of y are kept: they are the same in every
    epoch, so they are computed once, before the first step. In the memory of each process, or on disk in the run's
    folder, for all processes. Off: computed in every epoch. It pays from the second epoch on."""
    cache_limit: Annotated[float, Field(gt=0)] = 32.0
    """GB that the cache may take; a run that needs more is refused before it begins."""
    deterministic: bool = False
    """On a GPU: only operations that give the same bits each time (slower; CUBLAS_WORKSPACE_CONFIG=:4096:8 has to be in
    the environment). On a CPU all do."""

    @field_validator("equalize")
    @classmethod
    def _codes(cls, equalize: Equalize) -> Equalize:
        if isinstance(equalize, dict):
            if not equalize:
                raise ValueError("expected a share for each language, found none")
            check_codes(equalize)
        return equalize


class ColdStart(Section):
    """Stage 1: what the method starts from, and its reference R."""

    method: dict[str, Any] = {"name": "sft"}
    """A method table (`name = "sft" | "dft" | "seqkd"`), or `name = "none"` for the base student itself."""
    checkpoint: str | None = None
    """A finished cold start: this stage is not run, its checkpoint is used."""
    training: Training = Training()
    """Starts from the values of [training]; what stands in [cold_start.training] replaces them."""


class Generation(Section):
    """What `generation_config.json` of the result says; evaluators read their sampling from there."""

    do_sample: bool = False
    """Sample, or take the likeliest token."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Where it samples."""
    top_p: Probability = 1.0
    """Where it samples: the share of the likeliest tokens kept."""
    max_new_tokens: PositiveInt = 512
    """The length at which an answer is cut."""


class Paper(Section):
    """What the paper reports for this row (SEA-HELM averages, 0-100), shown beside our results."""

    table: str
    """Its number in the paper."""
    average: float
    """Over the languages."""
    languages: dict[str, float] = {}
    """By language."""


class Recipe(Section):
    """One run: the method, what it starts from, its models, data, limits and training."""

    name: Text
    """A file may leave it out: see `dudi.recipe.read.name_of`."""
    description: str = ""
    """A line for people."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of data order, samples, l_z and rollouts."""
    output: Text = "runs/{name}"
    """The run's folder."""
    method: dict[str, Any]
    cold_start: ColdStart = ColdStart()
    models: Models
    adapter: Adapter | None = None
    chat: Chat = Chat()
    data: Data
    limits: Limits = Limits()
    rollouts: Rollouts = Rollouts()
    training: Training = Training()
    generation: Generation = Generation()
    paper: Paper | None = None

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        """The name becomes a folder in `output`, so it must not lead out of it."""
        if name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
            raise ValueError(f"expected a name that can be a folder's, without / and \\, found {shown(name)}")
        return name

    @field_validator("output")
    @classmethod
    def _fillable(cls, output: str) -> str:
        try:  # not by trial: `format` would also look up attributes, and pad to any width
            fields = [(field, spec, how) for _, field, spec, how in Formatter().parse(output) if field is not None]
        except ValueError:
            fields = [("", "", None)]
        if any(field != ("name", "", None) for field in fields):
            raise ValueError(f"the only placeholder is {{name}}, found {shown(output)}") from None
        return output

    def to_method(self) -> Method:
        """The method as signals (validated when the recipe was read)."""
        return build_method(self.method)

    def cold_start_method(self) -> Method | None:
        """The cold start's method; None where the method starts from the base student or a given checkpoint."""
        given = self.cold_start.checkpoint is not None or self.cold_start.method.get("name") == "none"
        if given or not self.to_method().cold_start:
            return None
        return build_method(self.cold_start.method)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        method = self.to_method()
        name = self.cold_start.method.get("name")  # checked even where the method has no use for it
        if name not in ("sft", "dft", "seqkd", "none"):
            raise ValueError(f"cold_start.method.name: expected sft, dft, seqkd or none, found {shown(name)}")
        if name == "none" and len(self.cold_start.method) > 1:
            raise ValueError("cold_start.method: `none` has no keys beside its name")
        try:
            if name != "none":
                build_method(self.cold_start.method)
        except ValueError as error:
            raise ValueError(f"cold_start.method: {error}") from None
        cold = self.cold_start_method()
        for table, one, training in (
            ("training", method, self.training),
            ("cold_start.training", cold, self.cold_start.training),
        ):
            if one is not None and training.dropout and one.name not in ("sft", "dft"):
                raise ValueError(
                    f"{table}.dropout: method {one.name!r} compares distributions, which dropout would change at each"
                    " step: leave it false (the cold start's own is cold_start.training.dropout)"
                )
        for one in (method, cold):
            if one is not None and one.needs_larger_teacher and self.models.teacher is None:
                raise ValueError(f"models.teacher: method {one.name!r} needs a teacher; give a folder or a hub name")
        self._check_quantization()
        if self.rollouts.server is not None and not any(one and one.stored for one in (method, cold)):
            raise ValueError(
                "rollouts.server: no stage of this recipe writes answers before a training, as SeqKD's and SPIN's do:"
                " leave it out (what a step samples needs the student as it then is)"
            )
        return self

    def _check_quantization(self) -> None:
        models, of_teacher = self.models, self.models.teacher_quantization is not None
        if of_teacher and models.teacher is None:
            raise ValueError("models.teacher_quantization: there is no models.teacher")
        if of_teacher and models.teacher_sharding == "shard":
            raise ValueError(
                'models.teacher_quantization: not with models.teacher_sharding = "shard": a quantised teacher is'
                " whole on each device"
            )
        of_student = self.adapter is not None and self.adapter.quantization is not None
        if (of_teacher or of_student) and models.precision == "float64":
            key = "models.teacher_quantization" if of_teacher else "adapter.quantization"
            raise ValueError(f'{key}: not with models.precision = "float64", which is for comparing exactly')

"""Recipe: everything one run needs, in one TOML file. Strict: an unknown key is an error that names the choices."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from dudi.errors import DudiError, unknown
from dudi.languages import language_code
from dudi.methods import Method, build_method

RECIPES = Path(__file__).parent / "recipes"


def _expected(what: str) -> WrapValidator:
    """One fault that says what was wanted, where pydantic reports one for each type of a union."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"expected {what}, found {_shown(value)}") from None

    return WrapValidator(check)


PerLanguage = Annotated[
    PositiveInt | dict[str, PositiveInt],
    _expected("a positive whole number, or a table of them by language such as {default = 256, my = 512}"),
]
"""One number for all languages, or a table `{default = 256, my = 512}`."""
TemplateValue = Annotated[str | bool | int, _expected("a text, a whole number, true or false")]
Probability = Annotated[float, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A table of a recipe: unknown keys are refused, values are not coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Models(Section):
    """Folders or hub names of the checkpoints."""

    student: Text
    teacher: Text | None = None
    student_revision: str | None = None
    teacher_revision: str | None = None
    trust_remote_code: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Arithmetic. `auto` is bfloat16 autocast on a GPU and float32 elsewhere; the student's own weights are float32
    (float64 under `float64`) in every case, since bfloat16 rounds most updates of a small learning rate away."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"


class Chat(Section):
    """How messages become token ids."""

    template: str = "teacher"
    """`teacher`, `student`, or the path of a Jinja file. Base models, as students are, have none of their own."""
    kwargs: dict[str, TemplateValue] = {}
    """Passed to the template, such as `enable_thinking = false` or `date_string = "26 Jul 2024"`."""


class Data(Section):
    """Where the rows come from."""

    source: Text
    """A hub name, a folder of Parquet files, one `.jsonl` / `.parquet` file, or `builtin` (a few rows to try)."""
    format: Literal["sea_instruct", "chat"] = "chat"
    """`sea_instruct`: the columns of SEA-Instruct-2602. `chat`: `messages`, or `prompt` and `completion`."""
    revision: str | None = None
    split: str = "train"
    languages: tuple[str, ...] = ()
    """Languages to train on; empty: those of the data. The verbalizer chooses among these (and English)."""
    language: str | None = None
    """`chat` only: the language of every row, where the data has no `language` column."""
    rows_per_language: PositiveInt | None = None
    """Stratified sample of this size (domain x task x complexity kept); none: every row that passes the filter."""
    quality_filter: bool = True
    """`sea_instruct` only: keep rows marked Excellent, coherent, natural and harmless."""
    bad_rows: Literal["skip", "error"] | None = None
    """What a broken row does; by default `skip` (and report) for sea_instruct, `error` for chat."""
    eval_rows_per_language: Annotated[int, Field(ge=0)] = 0
    """Rows set aside for the evaluation loss, never trained on."""
    template_folder: str | None = None
    """Verbalizer templates of your own, one TOML a language; languages missing there use the shipped ones."""

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_language(code) for code in codes)

    @field_validator("language")
    @classmethod
    def _known_one(cls, code: str | None) -> str | None:
        return None if code is None else _language(code)


class Limits(Section):
    """Lengths in tokens (paper, appendix B). Each may be a table by language."""

    prompt: PerLanguage = 768
    """x; a longer one leaves the row out."""
    verbalizer: PerLanguage = 64
    """What p_z may add to x."""
    total: PerLanguage = 1024
    """x + y; a longer y is cut on the right, without EOS."""
    rollout: PerLanguage = 256
    """New tokens of y' and y~, and of a teacher's answer."""
    teacher_prompt: PerLanguage = 4096
    """z; a longer one leaves that row's on-policy term out."""

    def of(self, name: Literal["prompt", "verbalizer", "total", "rollout", "teacher_prompt"], language: str) -> int:
        """The limit that holds for one language, in tokens."""
        value = getattr(self, name)
        return int(value) if isinstance(value, int) else int(value.get(language, value["default"]))

    @model_validator(mode="after")
    def _default_given(self) -> Limits:
        for name in Limits.model_fields:
            value = getattr(self, name)
            if isinstance(value, dict):
                if "default" not in value:
                    raise ValueError(f"{name}: a table by language needs a `default`")
                for key in value:
                    if key != "default" and _language(key, f"{name}: ") != key:
                        raise ValueError(f"{name}: use the language code {language_code(key)!r} instead of {key!r}")
        return self


class Rollouts(Section):
    """Sampling of y', y~ and teacher answers."""

    temperature: Annotated[float, Field(gt=0)] = 0.9


class Training(Section):
    """The optimizer step (paper, appendix B, and the defaults of the trainer it used)."""

    lr: Annotated[float, Field(ge=0)] = 2e-5
    batch: PositiveInt = 32
    """Rows of one optimizer step, over all ranks."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: PositiveInt | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    micro_batch: PositiveInt = 8
    """At most so many rows of one rank at a time; changes memory, never the result."""
    micro_batch_tokens: PositiveInt = 16_384
    """At most so many padded student tokens at a time (one row always fits)."""
    gradient_checkpointing: bool = False
    head_chunk: PositiveInt = 256
    """Response positions projected to the vocabulary at a time."""
    log_every: PositiveInt = 10
    overlap_every: Annotated[int, Field(ge=0)] = 50
    """Steps between measurements of overlap@16 and entropies; 0: never."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    save_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2


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
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Probability = 1.0
    max_new_tokens: PositiveInt = 512


class Paper(Section):
    """What the paper reports for this row (SEA-HELM averages, 0-100), shown beside our results."""

    table: str
    average: float
    languages: dict[str, float] = {}


class Recipe(Section):
    """One run: the method, what it starts from, its models, data, limits and training."""

    name: Text
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    output: Text = "runs/{name}"
    method: dict[str, Any]
    cold_start: ColdStart = ColdStart()
    models: Models
    chat: Chat = Chat()
    data: Data
    limits: Limits = Limits()
    rollouts: Rollouts = Rollouts()
    training: Training = Training()
    generation: Generation = Generation()
    paper: Paper | None = None

    @field_validator("output")
    @classmethod
    def _fillable(cls, output: str) -> str:
        try:
            output.format(name="name")
        except (LookupError, ValueError, AttributeError):
            raise ValueError(f"the only placeholder is {{name}}, found {_shown(output)}") from None
        return output

    def build(self) -> Method:
        """The method as signals (validated when the recipe was read)."""
        return build_method(self.method)

    def build_cold_start(self) -> Method | None:
        """The cold start's method; None where the method starts from the base student or a given checkpoint."""
        given = self.cold_start.checkpoint is not None or self.cold_start.method.get("name") == "none"
        if given or not self.build().cold_start:
            return None
        return build_method(self.cold_start.method)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        method = self.build()
        name = self.cold_start.method.get("name")  # checked even where the method has no use for it
        if name not in ("sft", "dft", "seqkd", "none"):
            raise ValueError(f"cold_start.method.name: expected sft, dft, seqkd or none, found {_shown(name)}")
        if name == "none" and len(self.cold_start.method) > 1:
            raise ValueError("cold_start.method: `none` has no keys beside its name")
        try:
            if name != "none":
                build_method(self.cold_start.method)
        except ValueError as error:
            raise ValueError(f"cold_start.method: {error}") from None
        for one in (method, self.build_cold_start()):
            if one is not None and one.needs_larger_teacher and self.models.teacher is None:
                raise ValueError(f"models.teacher: method {one.name!r} needs a teacher; give a folder or a hub name")
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a TOML file or the name of a shipped one, its `extends`, then `--set key=value` overrides.

    Raises `DudiError` with file, key, what was found and what was wanted.
    """
    file = find_recipe(path)
    table = _read(file, ())
    for item in overrides:
        _set(table, item)
    return parse_recipe(table, str(path))


def parse_recipe(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from an already merged table; `where` names its origin in errors."""
    table = dict(table)
    cold = dict(table.get("cold_start") or {}) if isinstance(table.get("cold_start", {}), dict) else None
    if cold is not None and isinstance(table.get("training", {}), dict):
        if isinstance(cold.get("training", {}), dict):
            cold["training"] = {**table.get("training", {}), **cold.get("training", {})}
        table["cold_start"] = cold
    try:
        return Recipe.model_validate(_tuples(table))
    except ValidationError as error:
        raise DudiError(f"{where}: {_explain(error)}") from None


def dump_recipe(recipe: Recipe) -> str:
    """A recipe as TOML, every value spelled out; `load_recipe` reads it back to an equal one."""
    lines: list[str] = []
    tables: list[tuple[str, dict[str, Any]]] = [("", recipe.model_dump(mode="json", exclude_none=True))]
    while tables:
        name, table = tables.pop(0)
        lines += ["", f"[{name}]"] if name else []
        for key, value in table.items():
            if isinstance(value, dict):
                tables.append((f"{name}.{key}".lstrip("."), value))
            else:
                lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")  # JSON scalars and lists are TOML
    return "\n".join(lines) + "\n"


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe given by path, or by name among those that ship (`dudi recipes` lists them)."""
    file = Path(path)
    if file.is_file():
        return file
    shipped = RECIPES / f"{path}.toml"
    if shipped.is_file() and shipped.resolve().is_relative_to(RECIPES.resolve()):
        return shipped
    if file.is_dir():
        raise DudiError(f"recipe {str(path)!r} is a folder: give the TOML file in it")
    close = difflib.get_close_matches(str(path), shipped_recipes(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; `dudi recipes` lists the shipped ones"
    raise DudiError(f"no recipe {str(path)!r}: expected a TOML file or the name of a shipped recipe{hint}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package (shared bases, whose names start with `_`, left out)."""
    files = sorted(RECIPES.rglob("*.toml"))
    return [f.relative_to(RECIPES).with_suffix("").as_posix() for f in files if not f.name.startswith("_")]


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if file.resolve() in seen:
        raise DudiError(f"{file}: `extends` goes in a circle ({' -> '.join(p.name for p in (*seen, file))})")
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DudiError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DudiError(f"{file}: not UTF-8 text; save the recipe as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise DudiError(f"{file}: not valid TOML: {error}") from None
    except RecursionError:
        raise DudiError(f"{file}: not a recipe: brackets nested too deeply") from None
    bases = table.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise DudiError(f"{file}: extends: expected a file name or a list of them, found {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        parent = file.parent / base
        if not parent.is_file():
            raise DudiError(f"{file}: extends: no file {base!r} beside it")
        merged = _merge(merged, _read(parent, (*seen, file.resolve())))
    return _merge(merged, table)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; a `method` table of another name replaces the base's whole."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            renamed = key == "method" and value.get("name", old.get("name")) != old.get("name")
            value = value if renamed else _merge(old, value)
        result[key] = value
    return result


def _set(table: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise DudiError(f"--set {item!r}: expected key=value, such as --set training.lr=1e-5")
    try:
        value = tomllib.loads(f"value = {text.strip()}".replace("\n", " "))["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()  # a bare word is a string: --set method.verbalizer=mix
    for part in parts[:-1]:
        if not isinstance(table.get(part, {}), dict):
            raise DudiError(f"--set {item!r}: {part!r} is a value, not a table")
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def _tuples(value: Any) -> Any:
    """TOML has arrays only; strict models want tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _language(code: str, where: str = "") -> str:
    try:
        return language_code(code)
    except DudiError as error:
        raise ValueError(f"{where}{error}") from None


def _shown(value: Any) -> str:
    """A value as a recipe writes it, more or less, and not too long."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _explain(error: ValidationError) -> str:
    """The first fault, in one line; how many more there are. A misspelt key comes first: it may explain the others."""
    faults = error.errors(include_url=False)
    inherited = {("cold_start", *fault["loc"]) for fault in faults if fault["loc"][0:1] == ("training",)}
    faults = [fault for fault in faults if fault["loc"] not in inherited]  # a fault of [training] is one, not two
    first = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = unknown(str(first["loc"][-1]), _choices(first["loc"][:-1]), f"key in [{_table(first['loc'][:-1])}]")
    elif first["type"] == "missing":
        message = f"{key}: missing; it has no default"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
        message = f"{key}: {text}" if key else text
    else:
        wanted = {"tuple_type": "an array", "model_type": "a table", "dict_type": "a table"}.get(first["type"])
        text = f"expected {wanted}" if wanted else first["msg"][0].lower() + first["msg"][1:]
        message = f"{key}: {text}, found {_shown(first['input'])}"
    more = len(faults) - 1
    message += f" (and {more} more fault{'s' if more > 1 else ''})" if more else ""
    return " ".join(message.splitlines())


def _table(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc)) or "recipe"


def _choices(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Recipe
    for part in loc:
        model = model.model_fields[str(part)].annotation
        for option in getattr(model, "__args__", ()):
            if isinstance(option, type) and issubclass(option, BaseModel):
                model = option
    return list(model.model_fields)

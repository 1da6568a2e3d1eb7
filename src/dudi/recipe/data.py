"""`[data]` of a recipe: where the rows come from. Part of the schema, `dudi.recipe.schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from dudi.recipe.fields import Section, fault, known_language
from dudi.strict import Text


class DataSource(Section):
    """One of several sources (docs/data.md). What it leaves out is as [data] says, but for `revision`."""

    source: Text
    """As `data.source`."""
    format: Text | None = None
    """As `data.format`."""
    columns: dict[str, Text] | None = None
    """As `data.columns`."""
    language: str | None = None
    """As `data.language`."""
    revision: str | None = None
    """As `data.revision`."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often an epoch has each of its training rows. 1: once; 2: twice; 0.5: half of the rows, always the same; 1.5:
    all rows, and half of them again."""

    @field_validator("language")
    @classmethod
    def _known(cls, code: str | None) -> str | None:
        return None if code is None else known_language(code)


class Data(Section):
    """Where the rows come from: one `source`, or several in `[[data.sources]]`."""

    source: Text | None = None
    """A hub name, a folder, one file (docs/data.md lists the kinds), or `builtin` (a few rows to try)."""
    sources: tuple[DataSource, ...] = ()
    """Instead: several of them, each a table `[[data.sources]]`."""
    format: Text = "chat"
    """`sea_instruct`: the columns of SEA-Instruct-2602. `chat`: each row as what it looks like; or one of the formats
    of docs/data.md by name, such as `sharegpt` or `alpaca`."""
    columns: dict[str, Text] = {}
    """What columns are called, by the name that a format has for them: `{prompt = "question", language = "lang"}`."""
    ignore: tuple[str, ...] = ()
    """Parts of a row that are knowingly not read, such as `["reasoning_content", "name", "tools"]`; a row that has
    them is broken otherwise."""
    revision: str | None = None
    """On the hub: a branch, tag or commit of the data set."""
    split: str = "train"
    """Which split, where the files name splits."""
    languages: tuple[str, ...] = ()
    """Languages to train on; empty: those of the data. The verbalizer chooses among these (and English)."""
    language: str | None = None
    """Not for `sea_instruct`: the language of every row, whatever the data says."""
    rows_per_language: PositiveInt | None = None
    """Stratified sample of this size (domain x task x complexity kept); none: every row that passes the filter."""
    quality_filter: bool = True
    """`sea_instruct` only: keep rows marked Excellent, coherent, natural and harmless."""
    bad_rows: Literal["skip", "error"] | None = None
    """What a broken row does; by default `skip` (and report) for sea_instruct, `error` for others."""
    eval_rows_per_language: Annotated[int, Field(ge=0)] = 0
    """Rows set aside for the evaluation loss, never trained on."""
    eval_source: Text | None = None
    """Instead: the evaluation rows' own file, folder or hub name, such as the `eval.jsonl` of `dudi data prepare`. They
    are taken out of the training rows."""
    template_folder: str | None = None
    """Verbalizer templates of your own, one TOML a language; languages missing there use the shipped ones."""

    @field_validator("languages")
    @classmethod
    def _known(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known_language(code) for code in codes)

    @field_validator("language")
    @classmethod
    def _known_one(cls, code: str | None) -> str | None:
        return None if code is None else known_language(code)

    @model_validator(mode="after")
    def _source_or_sources(self) -> Data:
        if self.source is None and not self.sources:
            raise fault("source", "missing; it has no default, unless there are [[data.sources]]")
        if self.source is not None and self.sources:
            raise fault("source", "give it, or [[data.sources]], not both")
        if self.revision is not None and self.sources:
            raise fault("revision", "with [[data.sources]], give each its own")
        return self

    @model_validator(mode="after")
    def _one_evaluation(self) -> Data:
        if self.eval_source is not None and self.eval_rows_per_language:
            raise ValueError("eval_source: the evaluation rows are given; leave out eval_rows_per_language")
        return self

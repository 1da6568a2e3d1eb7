"""What `dudi check` says of a [data] table without reading a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dudi.cli import app
from dudi.data.load import load_rows
from dudi.data.settings import check_settings
from dudi.errors import DudiError
from dudi.recipe.schema import Data

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format": "alpacca"}, r"^data.format: expected one of .*found 'alpacca'"),
    ({"columns": {"promt": "x"}}, r"^data.columns: unknown field 'promt'; choose from .*prompt"),
    ({"columns": {"prompt": "x"}, "format": "sea_instruct"}, r"^data.columns: is not for data.format = 'sea_instruct'"),
    ({"ignore": ("nmae",)}, r"^data.ignore: 'nmae' is no part of a row; choose from name, "),
    ({"source": "/nowhere/rows.jsonl"}, r"^data.source: no file or folder '/nowhere/rows.jsonl'"),
    ({"source": "rows.jsonl"}, r"^data.source: no file or folder"),
    ({"source": "{folder}/rows.jsonl"}, r"^data.source: no file or folder"),
    ({"eval_source": "/nowhere"}, r"^data.eval_source: no file or folder '/nowhere'"),
]


@pytest.mark.parametrize(("values", "said"), WRONG, ids=lambda case: str(case)[:40])
def test_what_needs_no_reading(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    values = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in values.items()}
    data = Data.model_validate({"source": "builtin", **values})
    for check in (check_settings, lambda data: load_rows(data, 0)):
        with pytest.raises(DudiError, match=said):
            check(data)


@pytest.mark.parametrize("source", ["builtin", "owner/name", "{folder}"])
def test_what_may_be_there(tmp_path: Path, source: str) -> None:
    check_settings(Data(source=source.format(folder=tmp_path), ignore=("name", "weight"), columns={"context": "x"}))


@pytest.mark.parametrize("change", ["data.format=alpacca", "data.template_folder=/nowhere", "data.source=/nowhere"])
def test_the_command_asks(change: str) -> None:
    result = CliRunner().invoke(app, ["check", "qwen2.5-0.5b/dudi", "--set", change])
    assert isinstance(result.exception, DudiError) and str(result.exception).startswith(change.partition("=")[0])
    assert "stage 1" not in result.output

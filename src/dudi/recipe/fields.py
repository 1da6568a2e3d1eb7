"""Types and checks of single keys, which more than one table of a recipe has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import InitErrorDetails

from dudi.errors import DudiError
from dudi.languages import language_code
from dudi.strict import STRICT, Text, expected, shown


class Section(BaseModel):
    """A table of a recipe."""

    model_config = STRICT


TemplateValue = Annotated[str | bool | int, expected("a text, a whole number, true or false")]
Probability = Annotated[float, Field(gt=0, le=1)]
TargetModules = Annotated[
    Literal["all-linear"] | Annotated[tuple[Text, ...], Field(min_length=1)],
    expected('"all-linear", or a list of names such as ["q_proj", "v_proj"]'),
]
Quantization = Literal["8bit", "4bit"]
Equalize = Annotated[
    Literal["none", "tokens"] | dict[str, Annotated[float, Field(gt=0)]],
    expected('"none", "tokens", or a table of shares above 0 by language such as {id = 2, my = 1}'),
]


def _address(text: str) -> str:
    """A server's address. One with a name, password or query is refused: a run's folder holds its recipe."""
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and text.isprintable()
    except ValueError:
        known = False
    if not known or " " in text:
        raise ValueError(f"expected an address such as http://localhost:8000/v1, found {shown(text)}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "expected an address alone, such as http://localhost:8000/v1, without a password or a query: a key is read"
            " from the environment (docs/server.md)"
        )
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_address)]


def fault(key: str, text: str) -> ValidationError:
    """What is wrong with one key of a table, found when all of it is known."""
    found: InitErrorDetails = {"type": "value_error", "loc": (key,), "input": None, "ctx": {"error": ValueError(text)}}
    return ValidationError.from_exception_data("", [found])


def check_codes(keys: Iterable[str], where: str = "") -> None:
    """Refuse, with `ValueError`, keys of a table by language that are not languages' own codes."""
    for key in keys:
        if known_language(key, where) != key:
            raise ValueError(f"{where}use the language code {language_code(key)!r} instead of {key!r}")


def known_language(code: str, where: str = "") -> str:
    """A language's own code, by any name. Raises `ValueError`."""
    try:
        return language_code(code)
    except DudiError as error:
        raise ValueError(f"{where}{error}") from None

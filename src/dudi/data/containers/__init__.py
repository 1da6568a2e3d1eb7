"""The kinds of files that rows are read from. A new one is a file here and its line in `CONTAINERS`."""

from __future__ import annotations

from dudi.data.containers import columns, json_text, spreadsheet
from dudi.data.containers.container import COMPRESSED, Container, Header, Row

__all__ = ["COMPRESSED", "CONTAINERS", "Container", "Header", "Row", "container_of", "data_files", "stem"]

CONTAINERS: tuple[Container, ...] = (columns.PARQUET, json_text.LINES, columns.ARROW, json_text.JSON, spreadsheet.CSV)
_DESCRIBING = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""JSON that tools write beside the data."""


def container_of(path: str) -> Container | None:
    """The container that a file's name says it is."""
    return next((one for one in CONTAINERS if path.lower().endswith(one.names)), None)


def data_files(paths: list[str]) -> tuple[list[str], list[str]]:
    """The files of a folder that hold its rows, and those left out though they could hold some; each sorted."""
    found = {path: one for path in sorted(paths) if (one := container_of(path)) and not path.endswith(_DESCRIBING)}
    common = [path for path, one in found.items() if one.common]
    return (common, [path for path in found if path not in common]) if common else (list(found), [])


def stem(path: str) -> str:
    """A file's name without folders and without the suffixes of its container."""
    name = path.rsplit("/", 1)[-1]
    one = container_of(name)
    return name[: -len(max((s for s in one.names if name.lower().endswith(s)), key=len))] if one else name

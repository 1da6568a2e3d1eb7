"""The Hugging Face hub: which files a data set has, and reading them piece by piece."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, cast

from dudi.errors import DudiError

BLOCK = 8 << 20
"""Bytes asked for beyond what is wanted: few large requests are faster than many small ones, so where row groups are
small much of a file is fetched even for a few columns. Never more than a block is held."""


class Hub(Protocol):
    """What the loaders need of a hub. Tests give one that serves a folder or fails."""

    def listing(self, repo: str, revision: str | None) -> tuple[str, list[str]]:
        """The commit that a branch, tag or commit stands for, and the paths of its files."""
        ...

    def open(self, repo: str, revision: str, path: str) -> BinaryIO:
        """A file of that commit, seekable, read as it is asked for."""
        ...


class HuggingFaceHub:
    """The real hub. The token is the one of `hf auth login` or HF_TOKEN; it is never shown."""

    def listing(self, repo: str, revision: str | None) -> tuple[str, list[str]]:
        from huggingface_hub import HfApi

        info = HfApi().dataset_info(repo, revision=revision)
        if info.sha is None:
            raise DudiError(f"data set {repo!r}: the hub names no commit for revision {revision or 'main'!r}")
        return info.sha, [file.rfilename for file in info.siblings or []]

    def open(self, repo: str, revision: str, path: str) -> BinaryIO:
        from huggingface_hub import HfFileSystem

        return cast(BinaryIO, HfFileSystem().open(f"datasets/{repo}@{revision}/{path}", "rb", block_size=BLOCK))


class HubFile(io.RawIOBase):
    """A file of the hub whose reading errors are `DudiError`, also when pyarrow does the reading."""

    def __init__(self, file: BinaryIO, repo: str) -> None:
        self._file, self._repo = file, repo

    def readinto(self, buffer: Any) -> int:
        with hub_errors(self._repo, None):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever the hub's client raises, as one `DudiError` that says what to do.

    The client's own text is left out: it can hold addresses with signatures in them.
    """
    try:
        yield
    except DudiError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the operating system's errors
        raise DudiError(f"data set {repo!r}: {_advice(error, repo, revision)}") from None


def _advice(error: Exception, repo: str, revision: str | None) -> str:
    from huggingface_hub import errors

    access = (
        f"accept its terms on https://huggingface.co/datasets/{repo}, then log in with `hf auth login` or set HF_TOKEN;"
        " or give a local folder as data.source"
    )
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__ + (f", status {status}" if status else "")
    if isinstance(error, errors.GatedRepoError) or (
        status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError)
    ):
        return f"the hub refuses access ({name}); if it is gated, {access}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it ({name})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has none of that name, or it is gated or private ({name}): check it; if it is gated, {access}"
    if isinstance(error, errors.HFValidationError):
        return "neither a file or folder here nor a hub name (owner/name)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            "not a file or folder here, and the hub is switched off (HF_HUB_OFFLINE): unset it, or give a local folder"
        )
    if status:
        return f"the hub answered with an error ({name}); try again later, or give a local folder as data.source"
    return (
        f"no such file or folder here, and the hub cannot be read ({name}): check the connection; the data set may also"
        f" be gated: {access}"
    )

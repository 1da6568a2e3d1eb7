"""A hub, and `dudi` that takes it for the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session
from kit.command import TOKEN, Dudi
from kit.hub import Hub, serving


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as made:
        yield made


@pytest.fixture
def pushed(hub: Hub, dudi: Dudi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Dudi]:
    """`dudi`, for which the hub is that server."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield dudi
    close_session()

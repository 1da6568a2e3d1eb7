"""What the tests of a training share."""

from __future__ import annotations

import kit
import pytest

from dudi.text.chat import Chat


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(kit.tokenizer(), None, {})

"""A real checkout of SEA-HELM with its own Python: DUDI_SEAHELM_DIR and DUDI_SEAHELM_PYTHON name them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dudi.evals.seahelm.checkout import Checkout, open_checkout


@pytest.fixture(scope="session")
def checkout() -> Checkout:
    folder, python = os.environ.get("DUDI_SEAHELM_DIR"), os.environ.get("DUDI_SEAHELM_PYTHON")
    if not folder or not python:
        pytest.skip("DUDI_SEAHELM_DIR and DUDI_SEAHELM_PYTHON are not set: no SEA-HELM at hand")
    return open_checkout(Path(folder), python)

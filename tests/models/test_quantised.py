"""Weights in 8 or 4 bits, really quantised by bitsandbytes, on whatever device there is: what is loaded, what an adapter
beside them learns, what it becomes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
from kit.adapters import KINDS, adapted, adapted_trainer, by_hand, close, learned, whole
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dudi.models.adapter import is_adapted, merged
from dudi.models.load import load_model
from dudi.models.quantised import dense, is_quantised, quantisation_of, quantised_bytes
from dudi.models.reader import Reader
from dudi.models.swapped import adapter_of, with_weights, without
from dudi.recipe.schema import Models

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

IDS = torch.arange(40).reshape(2, 20)

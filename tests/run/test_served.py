"""A stage's model in `transformers serve`, as it is, asked with the client of OpenAI: it answers as `generate` does."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.runs import recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi.lab.build import WEIGHTS, export
from dudi.run.pipeline import run

pytestmark = pytest.mark.slow
for name in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(name, reason="pip install 'transformers[serving]' openai")
TURNS: Any = [{"role": "system", "content": "Jawab singkat."}, {"role": "user", "content": "Apa ibu kota Thailand?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the lab's teacher, which can say something."""
    folder = tmp_path_factory.mktemp("served")
    export(folder / "lab", WEIGHTS)
    changes = {
        "training": {"max_steps": 1, "lr": 1e-6},
        "models": {"student": str(folder / "lab" / "teacher"), "teacher": None},
    }
    made = recipe(folder, {"name": "sft"}, chat={"merge_system": True, "template": "student"}, **changes)
    return run(made) / "1-sft" / "model"


@pytest.fixture
def address(model: Path) -> Iterator[str]:
    """Of a server of its own, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env={**os.environ, "HF_HUB_OFFLINE": "1"}
    ) as server:
        try:
            until = time.monotonic() + 300
            while time.monotonic() < until and server.poll() is None:
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def test_it_answers_as_generate_does(model: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = importlib.import_module("openai").OpenAI(base_url=address, api_key="none")
    answer = client.chat.completions.create(model=str(model), messages=TURNS, max_tokens=12)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    inputs = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    asked = tokenizer.decode(inputs["input_ids"][0])
    assert "system" not in asked and "Jawab singkat.\n\nApa ibu kota" in asked, "as it was trained"
    wanted = loaded.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    said = tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert said and answer.choices[0].message.content.strip() == said
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]

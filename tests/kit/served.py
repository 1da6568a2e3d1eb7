"""A server with vLLM's completions: a tiny model behind HTTP, which samples by dudi's own engine. It can be flaky, or
wrong in any way that a test gives it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dudi.errors import DudiError
from dudi.rollouts import Request, Sampling
from dudi.rollouts.local import LocalEngine
from kit.models import VOCAB


@dataclass
class Served:
    """A model folder that is served. heard: bodies of completions in their order; answered: prompts of those that were
    sent; fault: by number of the request, "503", "drop", "half" or none; change: what is sent in place of a reply."""

    folder: Path
    name: str = ""
    root: str | None = None
    longest: int | None = 4096
    key: str | None = None
    tokenizes: bool = True
    gives: str = "return_token_ids"
    slow: float = 0.0
    fault: Callable[[int], str | None] = lambda number: None
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda reply: reply
    heard: list[dict[str, Any]] = field(default_factory=list)
    answered: list[tuple[int, ...]] = field(default_factory=list)
    most: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        self.lock, self.counting, self.now = threading.Lock(), threading.Lock(), 0
        self.load(self.folder)

    def load(self, folder: Path) -> None:
        """Serve another folder from now on."""
        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def count(self, more: int) -> None:
        """Requests under way, and the most of them."""
        with self.counting:
            self.now += more
            self.most = max(self.most, self.now)

    def rows(self) -> list[dict[str, Any]]:
        """Those of the requests that are for a row: not the tries of a check."""
        return [body for body in self.heard if body["temperature"] > 0]

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        """What it says. None: it has no such address."""
        if path == "/v1/models":
            card = {"id": self.name or str(self.folder), "root": self.root, "max_model_len": self.longest}
            return {"object": "list", "data": [card]}
        if path == "/tokenize" and self.tokenizes:
            return {"tokens": self.encode(body["prompt"])}
        return self.change(self.completion(body)) if path == "/v1/completions" else None

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.no_grad()
    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.encode(body["prompt"]) if isinstance(body["prompt"], str) else body["prompt"]
        stops = tuple(body["stop_token_ids"])
        sampler = LocalEngine(Sampling(stops, 0, VOCAB, body["temperature"]))
        (found,) = sampler(self.model, [Request(tuple(prompt), (body["seed"],), body["max_tokens"])])
        choice: dict[str, Any] = {"index": 0, "text": self.tokenizer.decode(found.ids)}
        if body.get("echo"):
            ids = torch.tensor([[*prompt, *found.ids]])
            said = self.model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            return {"choices": [{**choice, "logprobs": {"token_logprobs": [None, *said.tolist()]}}]}
        choice["finish_reason"] = "stop" if found.finished else "length"
        choice["stop_reason"] = found.ids[-1] if found.finished else None
        if self.gives == "return_token_ids" and body.get(self.gives):
            choice |= {"token_ids": found.ids, "prompt_token_ids": prompt}
        if self.gives == "return_tokens_as_token_ids" and body.get(self.gives) and body.get("logprobs"):
            choice["logprobs"] = {"tokens": [f"token_id:{id}" for id in found.ids]}
        return {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def answer(self, body: dict[str, Any]) -> None:
            if served.key and self.headers["authorization"] != f"Bearer {served.key}":
                self.send(401, {"error": f"not {self.headers['authorization']}"})
                return
            completes = self.path == "/v1/completions"
            with served.counting:
                number = len(served.heard)
                served.heard += [body] if completes else []
            fault = served.fault(number) if completes else None
            served.count(1)
            time.sleep(served.slow)
            with served.lock:
                reply = served.reply(self.path, body) if fault in (None, "half") else None
            served.count(-1)  # before it is sent: then the next may come
            if fault == "503":
                self.send(503, {"error": "busy"})
            elif fault == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.send(200 if reply is not None else 404, reply, half=fault == "half")
                if completes and fault is None:
                    served.answered.append(tuple(body["prompt"]))

        def send(self, status: int, reply: Any, half: bool = False) -> None:
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if half else data)

    return Handler


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server that answers so, at an address of this machine; tries are repeated soon."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NO_PROXY", "127.0.0.1")
            patch.setattr("dudi.rollouts.connection.FIRST_WAIT", 0.01)
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """It is there."""
    with listening(_handler(served)) as served.url:
        yield served


BY_SEQKD = {"method": {"name": "seqkd"}, "rollouts.server": "http://localhost/v1"}
SERVED: dict[str, tuple[Any, dict[str, Any]]] = {
    "server": ("http://localhost/v1", {"method": {"name": "seqkd"}}),
    "server_model": ("nobody", BY_SEQKD),
    "server_requests": (1, {**BY_SEQKD, "rollouts.server_requests": 4}),
}
"""By key of `[rollouts]`: another value, and what else stands in the recipe; for `asked`."""


def asked(w: Any, table: dict[str, Any]) -> Any:
    """What a run of a world (`kit.world`) is refused with, or how many rows it asks a server for, and whether several
    at a time. The server is one of this machine, wherever the recipe has it."""
    with serving(Served(w.folder / "teacher", name="base", root=str(w.folder / "teacher"), slow=0.05)) as served:
        rollouts = table.get("rollouts", {})
        try:
            w.start({**table, "rollouts": rollouts | ({"server": served.url} if "server" in rollouts else {})})
        except DudiError as error:
            return str(error).replace(served.url, "")
        return len(served.rows()), served.most > 1

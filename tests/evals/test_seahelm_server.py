"""A chat server in our sampler's place: what it is sent, what is tried again, what is told. SEA-HELM is the kit's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from kit.evals import save_model
from kit.seahelm import OurSeaHelm, run
from kit.served import listening

from dudi.errors import DudiError
from dudi.evals.seahelm import command

TASKS = {("id", "sentiment"): 4, ("th", "sentiment"): 6, ("id", "nli"): 4}


@pytest.fixture
def sea(monkeypatch: pytest.MonkeyPatch) -> OurSeaHelm:
    found = OurSeaHelm(TASKS)
    monkeypatch.setattr(command, "open_checkout", lambda folder, python: found)
    return found


@dataclass
class ChatServer:
    """What a chat server answers to all; its first requests fail with `status` as often as `failing` says."""

    names: Sequence[str]
    choice: Any = field(default_factory=lambda: {"message": {"content": "A"}, "finish_reason": "stop"})
    status: int = 200
    failing: int = 0
    asked: list[Any] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    url: str = ""


@contextmanager
def serving(chat: ChatServer) -> Iterator[ChatServer]:
    """It is there."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def reply(self, value: Any, code: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.reply({"object": "list", "data": [{"id": name, "object": "model"} for name in chat.names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat.keys.add(self.headers.get("Authorization"))
            if chat.failing > 0:
                chat.failing -= 1
                self.reply({"error": "not now"}, chat.status)
                return
            chat.asked.append((self.path, body))
            self.reply({"id": "1", "choices": [chat.choice], "usage": {"completion_tokens": 2, "total_tokens": 9}})

    with listening(Handler) as chat.url:
        yield chat


def test_a_server_answers_in_our_samplers_place(sea: OurSeaHelm, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    line = (model, "--with", "seahelm", "--output", tmp_path / "out", "--temperature", "0.7", "--runs", "2")
    with serving(ChatServer(["model"])) as chat:
        run(*line, "--server", chat.url)
        count = len(chat.asked)
        run(*line, "--server", chat.url)
    assert count == len(chat.asked) == 2 * sum(TASKS.values())
    path, body = chat.asked[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("model", 3, 0.7)
    assert (body["top_p"], body["repetition_penalty"]) == (1, 1), "not as the model's generation_config.json has it"
    assert {one["seed"] for _, one in chat.asked} == {0, 1} and body["messages"][0]["content"].startswith("A? ")
    (folder,) = (tmp_path / "out").iterdir()
    (first, *_) = json.loads((folder / "answers/run_0/th/sentiment.json").read_text(encoding="utf-8"))["answers"]
    assert (first["text"], first["tokens"], first["finished"]) == ("A", 2, True)


def test_a_server_that_is_busy_is_asked_again_with_its_key(
    sea: OurSeaHelm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUDI_SERVER_KEY", "k1")
    with serving(ChatServer(["model"], status=503, failing=3)) as chat:
        run(save_model(tmp_path / "model"), "--with", "seahelm", "--output", tmp_path / "out", "--server", chat.url)
    assert len(chat.asked) == sum(TASKS.values()) and chat.keys == {"Bearer k1"}


NO_CHAT: dict[str, tuple[ChatServer, str]] = {
    "two models": (ChatServer(["one", "two"]), r"serves \['one', 'two'\]"),
    "no model": (ChatServer([]), r"serves \[\]"),
    "a status": (ChatServer(["one"], status=400, failing=99), r"--server http.*: status 400: .*not now"),
    "another reply": (ChatServer(["one"], choice={"text": "A"}), r"chat/completions: choices\.0\.message: missing"),
}


@pytest.mark.parametrize("case", NO_CHAT)
def test_servers_that_do_not_answer_are_told_in_one_line(sea: OurSeaHelm, tmp_path: Path, case: str) -> None:
    line = (save_model(tmp_path / "model"), "--with", "seahelm", "--output", tmp_path / "out", "--server")
    chat, said = NO_CHAT[case]
    with serving(chat), pytest.raises(DudiError, match=said):
        run(*line, chat.url)


def test_a_server_that_is_not_there(sea: OurSeaHelm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dudi.rollouts.connection.FIRST_WAIT", 0.01)
    line = (save_model(tmp_path / "model"), "--with", "seahelm", "--output", tmp_path / "out", "--server")
    with pytest.raises(DudiError, match=r"--server http://127\.0\.0\.1:9: models: .*start it"):
        run(*line, "http://127.0.0.1:9")
    with pytest.raises(DudiError, match="--template is no option of --server"):
        run(*line, "http://127.0.0.1:9", "--template", tmp_path / "t.jinja")

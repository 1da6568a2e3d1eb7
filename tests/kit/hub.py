"""A small server that answers as the hub does, as far as an upload needs it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kit.command import TOKEN

REPO = "someone/small"


@dataclass
class Hub:
    """What the server holds and has heard. there: names of files in the repository; others: what it says of data sets
    by name; refuse: status of every answer."""

    there: list[str] = field(default_factory=lambda: [".gitattributes"])
    private: bool = True
    others: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuse: int | None = None
    heard: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    address: str = ""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(hub.refuse or status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            hub.heard.append(("GET", self.path))
            siblings = [{"rfilename": name} for name in hub.there]
            info = {"id": REPO, "sha": "0" * 40, "private": hub.private, "siblings": siblings, "tags": []}
            name = self.path.partition("?")[0]
            found = {f"/api/datasets/{one}": {"id": one, **about} for one, about in hub.others.items()}
            own = (f"/api/models/{REPO}", f"/api/datasets/{REPO}")
            self.answer(info if name in own else next((v for k, v in found.items() if name.startswith(k)), {}))

        def do_POST(self) -> None:
            hub.heard.append(("POST", self.path))
            assert self.headers["authorization"] == f"Bearer {TOKEN}"
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                kind = "datasets/" if hub.created[-1].get("type") == "dataset" else ""
                self.answer({"url": f"{hub.address}/{kind}{REPO}"})
            elif "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                hub.commits.append({f["path"]: base64.b64decode(f["content"]) for f in files})
                self.answer({"success": True, "commitUrl": f"{hub.address}/{REPO}/commit/1", "commitOid": "1"})
            else:
                self.answer({"errors": [], "warnings": []})

    return Handler


@contextmanager
def serving() -> Iterator[Hub]:
    """It is there, at an address of this machine."""
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    made.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()

"""The real hub client against a small server that answers as the hub does: listing, ranges, refusals."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kit.data import made_rows, write_parquet

NAME = "some/rows"
SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_0123456789secret"
SCRIPT = """
import json, sys
from dudi.recipe.schema import Data
from dudi.data.load import load_rows
from dudi.errors import DudiError
try:
    rows = load_rows(Data(source="some/rows", format="sea_instruct", revision=sys.argv[1], rows_per_language=40), 0)
    print(json.dumps({"revision": rows.manifest["revision"], "sha256": rows.manifest["sha256"]["train"]}))
except DudiError as error:
    print(json.dumps({"error": str(error)}))
"""


class Handler(BaseHTTPRequestHandler):
    folder: Path
    refuse: tuple[int, str] | None = None
    seen: list[str]

    def log_message(self, *args):
        pass

    def _send(self, status, body=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        paths = [path for path in self._files() if path.replace("/", "%2F") in body or path in body]
        self._send(200, json.dumps([self._entry(path) for path in paths]).encode())

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.seen.append(f"{self.command} {path} {self.headers.get('range')}")
        if self.refuse:
            status, code = self.refuse
            self._send(status, b"{}", [("x-error-code", code), ("x-error-message", "refused")])
        elif path.startswith(f"/api/datasets/{NAME}/revision/"):
            revision = path.rpartition("/")[2]
            if revision not in ("v1", SHA):
                self._send(404, b"{}", [("x-error-code", "RevisionNotFound")])
                return
            siblings = [{"rfilename": path} for path in self._files()]
            self._send(200, json.dumps({"id": NAME, "sha": SHA, "siblings": siblings}).encode())
        elif path.startswith(f"/api/datasets/{NAME}/tree/"):
            self._send(200, json.dumps([self._entry(path) for path in self._files()]).encode())
        elif path.startswith(f"/datasets/{NAME}/resolve/{SHA}/"):
            self._file(path.partition(SHA + "/")[2])
        else:
            self._send(404, b"{}", [("x-error-code", "RepoNotFound")])

    def _file(self, path):
        data = (self.folder / path).read_bytes()
        span = self.headers.get("range")
        if span:
            first, last = (int(part) for part in span.removeprefix("bytes=").split("-"))
            part = data[first : last + 1]
            self._send(206, part, [("content-range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")])
        else:
            self._send(200, data, [("etag", '"1"'), ("x-repo-commit", SHA)])

    def _files(self):
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.parquet"))

    def _entry(self, path):
        return {"type": "file", "path": path, "size": (self.folder / path).stat().st_size, "oid": "0" * 40}


@pytest.fixture
def server(tmp_path):
    handler = type("Handler", (Handler,), {"folder": tmp_path / "hub", "seen": []})
    one = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def load(server, tmp_path, revision="v1"):
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, revision], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_rows_come_from_the_pinned_commit_in_pieces(server, tmp_path):
    from dudi.data.load import load_rows
    from dudi.recipe.schema import Data

    rows = made_rows(300)
    for i in range(2):
        write_parquet(tmp_path / f"hub/Indonesian/train-0000{i}-of-00002.parquet", rows[i * 150 : i * 150 + 150])
    local = load_rows(Data(source=str(tmp_path / "hub"), format="sea_instruct", rows_per_language=40), 0)
    assert load(server, tmp_path) == {"revision": SHA, "sha256": local.manifest["sha256"]["train"]}
    seen = server.RequestHandlerClass.seen
    assert any("/resolve/" in one and "bytes=" in one for one in seen)
    assert not any("/resolve/v1/" in one for one in seen)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (
            (401, "GatedRepo"),
            "accept its terms on https://huggingface.co/datasets/some/rows, then log in with `hf auth login`",
        ),
        ((403, "GatedRepo"), "accept its terms on"),
        ((401, "RepoNotFound"), "the hub has none of that name, or it is gated or private"),
        ((500, "Oops"), "the hub answered with an error"),
    ],
)
def test_refusals(server, tmp_path, refusal, said):
    (tmp_path / "hub").mkdir()
    server.RequestHandlerClass.refuse = refusal
    assert said in load(server, tmp_path)["error"]


def test_a_revision_that_is_not_there(server, tmp_path):
    (tmp_path / "hub").mkdir()
    assert "no revision 'v9'" in load(server, tmp_path, "v9")["error"]

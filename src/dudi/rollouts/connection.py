"""HTTP to a server that answers: JSON both ways, with retries; one that will not do is one line."""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO, Any, TypeVar

from dudi.draws import draw
from dudi.errors import DudiError
from dudi.strict import parsed

T = TypeVar("T")
KEY = "DUDI_SERVER_KEY"
"""The environment's variable with the server's key. (Not OPENAI_API_KEY: it is nobody else's to have.)"""
TRIED = 8
"""So often before it is an error, over a minute; a short call, which nobody waits for, three times."""
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that pass."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second try, doubled with each, and before the last."""
SECONDS = 600.0
"""How long one answer may take."""
MAX_BYTES = 1 << 26
"""Of a reply."""


class Refused(DudiError):
    """A server does not do what it is asked, and will not if asked again. code: the HTTP status."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class _Passing(Exception):
    """What may not happen again. after: the seconds that the server asks to wait."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address is an answer, not a place to send a key to."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Connection:
    """A server's address, and calls to it from any number of threads. setting: what gave the address."""

    def __init__(self, url: str, setting: str = "rollouts.server") -> None:
        self.url = url
        self.where = f"{setting} {url}"
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise DudiError(f"{KEY}: expected the server's key, found something else than letters, digits and signs")
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Nobody waits for answers any more: what failed is not tried again."""
        self._given_up.set()

    def call(self, kind: type[T], path: str, body: Mapping[str, Any] | None = None, short: bool = False) -> T:
        """What the server says, as that type. path: below the address, or, with a slash, beside its `/v1`.

        Raises `Refused`, or `DudiError` for a server that is not there, or fails again and again.
        """
        url = self.url.removesuffix("/v1") + path if path.startswith("/") else f"{self.url}/{path}"
        tries = 3 if short else TRIED
        fault = _Passing("")
        for n in range(tries):
            try:
                return parsed(kind, self._once(url, body), f"{self.where}: {path}")
            except _Passing as error:
                fault = error
            if n + 1 < tries and self._given_up.wait(fault.after or _wait(n, url, body)):
                break
        advice = "start it, or wait until it is ready, and call the same again (a run that has begun: with --resume)"
        raise DudiError(f"{self.where}: {path}: {fault} ({n + 1} tries): {advice}")

    def _once(self, url: str, body: Mapping[str, Any] | None) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with self._opener.open(urllib.request.Request(url, data, headers), timeout=SECONDS) as reply:
                text = self._text(reply)
            json.loads(text)  # half of one is no answer
            return text
        except urllib.error.HTTPError as error:
            said = self._said(error)
            line = f"status {error.code}{f': {said}' if said else ''}"
            if error.code in AGAIN:
                raise _Passing(line, _after(error.headers.get("Retry-After"))) from None
            if error.code in (401, 403):
                line += f": give the server's key in the environment, as {KEY}"
            raise Refused(f"{self.where}: {line}", error.code) from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise _Passing(f"no answer ({getattr(error, 'reason', None) or error or type(error).__name__})") from None

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The beginning of what came with a status."""
        try:
            with error:
                return " ".join(self._text(error).split())[:200]
        except (OSError, http.client.HTTPException):
            return "and no more"

    def _text(self, reply: IO[bytes]) -> str:
        """The text of a reply, without the key that an error may repeat."""
        text = reply.read(MAX_BYTES).decode("utf-8", "replace")
        return text.replace(self._key, "***") if self._key else text


def _wait(n: int, url: str, body: Mapping[str, Any] | None) -> float:
    """Seconds before the next try: doubled each time, up to a half more, so that not all ask again at once."""
    return float(min(FIRST_WAIT * 2**n, LONGEST_WAIT)) * (1 + draw(url, str(body), n) / 2**65)


def _after(text: str | None) -> float | None:
    return min(float(text), LONGEST_WAIT) if text is not None and text.isdecimal() else None

"""What every run of the page has in common: a token, and what was posted, as it came.

received.jsonl    every post as it came, and who sent it; of refused ones the reason and the beginning
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from saten_edge.phone.schema import Post
from saten_runtime.errors import DataError

__all__ = ["RECEIVED_FILE", "Mismatch", "Received"]

RECEIVED_FILE = "received.jsonl"

_MOST_RECEIVED_BYTES = 64 << 20
_MOST_REFUSALS_KEPT = 100
_MOST_REFUSED_BYTES = 2_000


class Mismatch(DataError):
    """A sound post that is not of this run, or not of what this run serves."""


class Received:
    """Takes posts until `close`. `token` opens it and dies with it.

    A post that comes again replaces the earlier one: a page that was reloaded starts over.
    """

    def __init__(self, asked: dict[str, Any], folder: Path) -> None:
        self.id = secrets.token_hex(8)
        self.token = secrets.token_urlsafe(16)
        self.folder = folder
        self._asked = asked
        self._open = True
        self._received_bytes = 0
        self._refusals = 0

    @property
    def is_open(self) -> bool:
        """Whether posts are still taken."""
        return self._open

    @property
    def has_results(self) -> bool:
        """Whether there is something to hand over."""
        raise NotImplementedError

    def admits(self, token: str) -> bool:
        """Whether `token` is this run's, compared in constant time, and the run not over."""
        return hmac.compare_digest(token.encode(), self.token.encode()) and self._open

    def to_json(self) -> dict[str, Any]:
        """The job, with the id that every post has to carry."""
        return {"run": self.id, **self._asked}

    def receive(self, post: Post, raw: bytes, user_agent: str) -> dict[str, Any]:
        """Check a post against what this run serves, store it, and answer the page.

        Raises:
            Mismatch: of another run or another model, or with parts that were not asked for.
            DataError: outputs that are damaged.
        """
        if post.run != self.id:
            raise Mismatch(f"run {post.run!r}: this is another run; load the page again")
        if self._received_bytes + len(raw) > _MOST_RECEIVED_BYTES:
            raise Mismatch(f"this run has taken {self._received_bytes:,} bytes, the most it keeps; start another")
        taken = self._take(post, user_agent)
        self._received_bytes += len(raw)
        self._keep({"kind": type(post).__name__.lower(), "user_agent": user_agent}, raw)
        return taken

    def refuse(self, reason: str, raw: bytes, user_agent: str) -> None:
        """Keep a post that was refused: the reason and its beginning."""
        self._refusals += 1
        if self._refusals <= _MOST_REFUSALS_KEPT:
            line = {"kind": "refused", "reason": reason, "user_agent": user_agent}
            self._keep(line, raw[:_MOST_REFUSED_BYTES])

    def close(self) -> None:
        """Take no more; harmless when done before."""
        self._open = False

    def _take(self, post: Post, user_agent: str) -> dict[str, Any]:
        """What a post of this run is answered.

        Raises:
            Mismatch: of a kind that was not asked for.
        """
        raise Mismatch(f"{type(post).__name__.lower()}: this run asks for nothing of the kind; load the page again")

    def _keep(self, line: dict[str, Any], raw: bytes) -> None:
        text = json.dumps({**line, "body": raw.decode(errors="backslashreplace")}, allow_nan=False) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / RECEIVED_FILE).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

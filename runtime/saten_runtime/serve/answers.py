"""What is answered: OpenAI's objects as plain data."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime import __version__

__all__ = ["CHAT", "COMPLETION", "DONE", "Voice", "created_now", "embeddings", "error", "event", "usage"]

Vector = npt.NDArray[np.float32]
Answer = dict[str, Any]

DONE = b"data: [DONE]\n\n"


def error(message: str, code: str | None = None, kind: str = "invalid_request_error") -> Answer:
    """A refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def usage(prompt: int, made: int | None = None) -> dict[str, int]:
    """Tokens that were read and made; made: None where nothing is made."""
    counts = {} if made is None else {"completion_tokens": made}
    return {"prompt_tokens": prompt, **counts, "total_tokens": prompt + (made or 0)}


def embeddings(model: str, vectors: Sequence[Vector], encoding: str, tokens: int) -> Answer:
    """Vectors in the order of the texts."""
    data = [
        {"object": "embedding", "index": index, "embedding": _ENCODINGS[encoding](vector)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": model, "usage": usage(tokens)}


_ENCODINGS: dict[str, Callable[[Vector], list[float] | str]] = {
    "float": lambda vector: vector.tolist(),
    "base64": lambda vector: base64.b64encode(vector.astype("<f4").tobytes()).decode(),
}


def created_now() -> int:
    """`created` of an answer or a model: a date for the client to show, in Unix seconds; nothing is timed by it."""
    return int(time.time())


@dataclass(frozen=True)
class Voice:
    """How one of the two ways to continue names and nests what it says.

    prefix: of identifiers; whole, part: the kinds of the answer and of a piece of it.
    """

    prefix: str
    whole: str
    part: str
    is_chat: bool

    def head(self, model: str, is_part: bool) -> Answer:
        """What is the same in all pieces of one answer."""
        return {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "object": self.part if is_part else self.whole,
            "created": created_now(),
            "model": model,
            "system_fingerprint": f"saten-runtime-{__version__}",
        }

    def choice(self, index: int, text: str, finish: str | None) -> Answer:
        """A whole continuation."""
        said: Answer = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}

    def piece(self, index: int, text: str, finish: str | None = None, is_first: bool = False) -> Answer:
        """A part of a continuation; the last has a reason why it ends."""
        role = {"role": "assistant"} if is_first else {}
        content = {"content": text} if text or is_first else {}
        said: Answer = {"delta": {**role, **content}} if self.is_chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}


COMPLETION = Voice("cmpl", "text_completion", "text_completion", False)
CHAT = Voice("chatcmpl", "chat.completion", "chat.completion.chunk", True)


def event(value: Answer) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"

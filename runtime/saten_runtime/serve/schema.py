"""What a request may say: the fields of OpenAI's interface, each with what is taken.

https://platform.openai.com/docs/api-reference. A field that is not here, or a value that nothing here does, is
refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from saten_runtime.bundle.chat import SYSTEM
from saten_runtime.errors import DataError
from saten_runtime.records.files import parse_object
from saten_runtime.records.reader import Bound, Count, Natural, Reader

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingRequest", "Message", "SpeechRequest", "parse_request"]

Request = TypeVar("Request")
_MOST_STOPS = 16

_READER = Reader(DataError, exact=True)
_LOOSE = Reader(DataError)  # of the request itself, whose fields may be missing


def _only(value: Any, why: str) -> Bound:
    return Bound(f"{value!r} ({why})", lambda given: given == value)


_HEAT = Annotated[float, Bound("a number from 0 to 2", lambda value: 0 <= value <= 2)]
_SHARE = Annotated[float, Bound("a number above 0, 1 at most", lambda value: 0 < value <= 1)]
_ZERO = Annotated[float, _only(0.0, "no rule of this server does it")]
_ONE = Annotated[int, _only(1, "one text is continued, by one token at a time")]
_FALSE = Annotated[bool, _only(False, "this server does not do it")]
_ENCODING = Annotated[str, Bound('"float" or "base64"', lambda value: value in ("float", "base64"))]
_ROLE = Annotated[
    str,
    Bound("system, developer, user or assistant", lambda value: value in ("system", "developer", "user", "assistant")),
]

_STREAM = Annotated[dict[str, bool], Bound("include_usage alone", lambda value: set(value) <= {"include_usage"})]


class Texts(list[str]):
    """One text or a list of them, at least one."""

    @classmethod
    def from_json(cls, value: object, where: str, error: Callable[[str], Exception]) -> Texts:
        """Read either.

        Raises:
            whatever `error` builds: token ids, which are those of some tokenizer, or anything else.
        """
        given = [value] if isinstance(value, str) else value
        if isinstance(given, list) and given and all(isinstance(each, str) for each in given):
            return cls(_READER.read(list[str], given, where))
        ids = isinstance(given, list) and given and isinstance(given[0], int | list)
        found = "token ids, maybe of another model's tokenizer" if ids else f"{value!r:.60}"
        raise error(f"{where}: found {found}; expected a text or a list of texts")


class Stops(Texts):
    """Texts that end a continuation."""

    @classmethod
    def from_json(cls, value: object, where: str, error: Callable[[str], Exception]) -> Stops:
        """Read one or several.

        Raises:
            whatever `error` builds: an empty one, or too many.
        """
        stops = cls(super().from_json(value, where, error))
        if len(stops) > _MOST_STOPS or not all(stops):
            raise error(f"{where}: found {value!r:.60}; expected at most {_MOST_STOPS} texts, none of them empty")
        return stops


class Content(str):
    """What a message says: a text, or parts that are texts."""

    @classmethod
    def from_json(cls, value: object, where: str, error: Callable[[str], Exception]) -> Content:
        """Read either.

        Raises:
            whatever `error` builds: a part that is a picture, a sound or a file, or anything else.
        """
        if isinstance(value, list):
            parts = _READER.read(list[_Part], value, where)
            return cls("".join(part.text for part in parts))
        return cls(_READER.read(str, value, where))


@dataclass(frozen=True)
class _Part:
    type: Annotated[str, _only("text", "this server reads texts")]
    text: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: _ROLE
    content: Content

    def plain(self) -> dict[str, str]:
        """As the chat templates take it; what OpenAI calls a developer is the system."""
        return {"role": SYSTEM if self.role == "developer" else self.role, "content": self.content}


class Messages(list[Message]):
    """The turns of a conversation."""

    @classmethod
    def from_json(cls, value: object, where: str, error: Callable[[str], Exception]) -> Messages:
        """Read them.

        Raises:
            whatever `error` builds: a message with a field that this server does not know, or without one it needs.
        """
        given = [_said(each) for each in value] if isinstance(value, list) else value
        return cls(_READER.read(list[Message], given, where))


def _said(given: Any) -> Any:
    """An object without its nulls, which are as good as nothing; anything else as it is."""
    return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


@dataclass(frozen=True)
class EmbeddingRequest:
    """Of /v1/embeddings. dimensions: how many of a vector's first numbers are kept."""

    model: str
    input: Texts
    encoding_format: _ENCODING = "float"
    dimensions: Natural | None = None
    user: str = ""


@dataclass(frozen=True)
class SpeechRequest:
    """What both ways to continue have in common; None: as the model says, at random, or as many as may be."""

    model: str
    temperature: _HEAT | None = None
    top_p: _SHARE | None = None
    seed: Count | None = None
    stop: Stops = field(default_factory=Stops)
    stream: bool = False
    stream_options: _STREAM = field(default_factory=dict)
    max_tokens: Natural | None = None
    n: _ONE = 1
    frequency_penalty: _ZERO = 0.0
    presence_penalty: _ZERO = 0.0
    logit_bias: Annotated[dict[str, float], _only({}, "no rule of this server does it")] = field(default_factory=dict)
    user: str = ""


@dataclass(frozen=True)
class CompletionRequest(SpeechRequest):
    """Of /v1/completions."""

    prompt: Texts = field(default_factory=Texts)
    echo: _FALSE = False
    best_of: _ONE = 1


@dataclass(frozen=True)
class ChatRequest(SpeechRequest):
    """Of /v1/chat/completions."""

    messages: Messages = field(default_factory=Messages)
    max_completion_tokens: Natural | None = None
    logprobs: _FALSE = False
    store: _FALSE = False
    response_format: Annotated[dict[str, str], _only({"type": "text"}, "an answer is a text")] = field(
        default_factory=lambda: {"type": "text"}
    )


def parse_request(kind: type[Request], content: bytes) -> Request:
    """The body as `kind`. A null is as good as nothing.

    Raises:
        DataError: not JSON, a field that is missing or not known, or a value that is not taken; names the field.
    """
    said = _said(parse_object(content, "body", DataError, "send what OpenAI's client sends"))
    fields: dict[str, Any] = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    odd = [name for name in said if name not in fields]
    if odd:
        raise DataError(f"{odd[0]!r:.60}: this server does not know it; it knows {', '.join(sorted(fields))}")
    missing = [name for name in ("model", "input", "prompt", "messages") if name in fields and not said.get(name)]
    if missing:
        raise DataError(f"{missing[0]}: is missing or empty")
    return _LOOSE.read(kind, said, "request")

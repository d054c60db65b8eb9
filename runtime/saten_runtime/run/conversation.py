"""A conversation with a bundle, turn by turn."""

from __future__ import annotations

from collections.abc import Iterator

from saten_runtime.bundle.chat import ASSISTANT, SYSTEM, USER
from saten_runtime.run.generation import Sampling
from saten_runtime.run.runner import Runner

__all__ = ["Conversation"]


class Conversation:
    """What was said so far. A turn reads only what the turns before did not."""

    def __init__(self, runner: Runner, how: Sampling, system: str | None = None) -> None:
        self.messages = [] if system is None else [{"role": SYSTEM, "content": system}]
        self._runner, self._how, self._decoder = runner, how, runner.decoder()

    def say(self, text: str) -> Iterator[str]:
        """The answer to `text`, piece by piece as it is made. What ends early stays in the conversation as it is.

        Raises:
            BundleError: the bundle has no chat template.
            UsageError: the conversation no longer fits into the context; it stays as it was before.
        """
        asked = [*self.messages, {"role": USER, "content": text}]
        pieces = self._runner.generate(asked, self._how, decoder=self._decoder)
        answer = [next(pieces, "")]  # refusals come before the first piece
        self.messages = asked
        try:
            yield answer[0]
            for piece in pieces:
                answer.append(piece)
                yield piece
        finally:
            self.messages = [*asked, {"role": ASSISTANT, "content": "".join(answer)}]

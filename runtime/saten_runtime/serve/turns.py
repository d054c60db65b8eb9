"""What one request to continue texts is answered: at once, or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from saten_runtime.run.runner import Prompt
from saten_runtime.serve import answers
from saten_runtime.serve.answers import Voice
from saten_runtime.serve.models import Writer
from saten_runtime.serve.schema import SpeechRequest
from saten_runtime.serve.speech import Speech

__all__ = ["Turn"]


class Turn:
    """The prompts of one request, which are continued one after the other.

    most: tokens of each that were asked for.
    """

    def __init__(
        self, writer: Writer, asked: SpeechRequest, prompts: Sequence[Prompt], most: int | None, voice: Voice
    ) -> None:
        self.writer, self.asked, self._prompts, self._most, self._voice = writer, asked, prompts, most, voice
        self._deadline = writer.deadline()
        self._speeches: list[Speech] = []
        self.read = 0

    @property
    def made(self) -> int:
        """Tokens that were made so far."""
        return sum(speech.made for speech in self._speeches)

    async def whole(self) -> dict[str, Any]:
        """The answer.

        Raises:
            TimeoutError: it takes too long.
            Full: too many prompts wait.
            SatenError: as the runner raises it.
        """
        choices = []
        for index, prompt in enumerate(self._prompts):
            speech = await self._begin(prompt)
            text = "".join([piece async for piece in speech.pieces()])
            choices.append(self._voice.choice(index, text, speech.finish))
        head = self._voice.head(self.writer.name, is_part=False)
        return {**head, "choices": choices, "usage": answers.usage(self.read, self.made)}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events.

        Raises:
            as `whole`.
        """
        head = self._voice.head(self.writer.name, is_part=True)
        for index, prompt in enumerate(self._prompts):
            async with aclosing(self._choices(index, prompt)) as choices:
                async for choice in choices:
                    yield answers.event({**head, "choices": [choice]})
        if self.asked.stream_options.get("include_usage"):
            yield answers.event({**head, "choices": [], "usage": answers.usage(self.read, self.made)})
        yield answers.DONE

    async def _choices(self, index: int, prompt: Prompt) -> AsyncGenerator[dict[str, Any], None]:
        speech = await self._begin(prompt)
        is_first = True
        async with aclosing(speech.pieces()) as pieces:
            async for piece in pieces:
                yield self._voice.piece(index, piece, is_first=is_first)
                is_first = False
        yield self._voice.piece(index, "", speech.finish, is_first)

    async def _begin(self, prompt: Prompt) -> Speech:
        speech, read = await self.writer.speak(prompt, self.asked, self._most, self._deadline)
        self._speeches.append(speech)
        self.read += read
        return speech

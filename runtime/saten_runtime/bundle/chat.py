"""A chat template as text around the messages: what a device needs of it, and no program to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saten_runtime.errors import UsageError

__all__ = ["ASSISTANT", "SYSTEM", "USER", "Chat", "Message", "Role"]

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
Message = Mapping[str, str]
"""As transformers has it: role (system, user or assistant) and content."""


@dataclass(frozen=True)
class Role:
    """What stands before and after the content of a message of one role."""

    before: str
    after: str


@dataclass(frozen=True)
class Chat:
    """How the messages of a conversation become one text.

    opening: what stands before the first message where no system message is given, a default one among it. system:
    None where the model knows no such message; its `before` begins the text. answer: what the model continues, after
    the last message. trim: contents lose white space at both ends.
    """

    opening: str
    user: Role
    assistant: Role
    answer: str
    system: Role | None = None
    trim: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the model continues with its answer; special tokens are spelled in it.

        messages: perhaps a system message, then user and assistant in turn, a user's last.

        Raises:
            UsageError: they are not, or the model takes no system message.
        """
        said = [_checked(number, message) for number, message in enumerate(messages, 1)]
        system = said[:1] if said and said[0][0] == SYSTEM else []
        if system and self.system is None:
            raise UsageError("this model's chat template has no system message; say it in the first user message")
        turns = said[len(system) :]
        if not turns or [role for role, _ in turns] != [(USER, ASSISTANT)[turn % 2] for turn in range(len(turns))]:
            found = ", ".join(role for role, _ in said) or "none"
            raise UsageError(f"messages of {found}: expected user and assistant in turn, after at most one of system")
        if turns[-1][0] != USER:
            raise UsageError("the last message is the assistant's; expected the user's, which is answered")
        roles = {SYSTEM: self.system, USER: self.user, ASSISTANT: self.assistant}
        text = "".join(self._around(roles[role], content) for role, content in said)
        return ("" if system else self.opening) + text + self.answer

    def _around(self, role: Role | None, content: str) -> str:
        content = content.strip() if self.trim else content
        return "" if role is None else f"{role.before}{content}{role.after}"


def _checked(number: int, message: Message) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in (SYSTEM, USER, ASSISTANT) or not isinstance(content, str):
        raise UsageError(f"message {number}: expected a role (system, user or assistant) and a content, both texts")
    return str(role), content

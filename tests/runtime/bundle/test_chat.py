"""Messages become one text, and what is no conversation is refused."""

from __future__ import annotations

import pytest

from saten_runtime.bundle.chat import Chat, Role
from saten_runtime.errors import UsageError

CHAT = Chat("<s>", Role("U:", "\n"), Role("A:", "</s>"), "A:", Role("<s>S:", "\n"))


def messages(*pairs: str) -> list[dict[str, str]]:
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names[pair[0]], "content": pair[1:]} for pair in pairs]


def test_the_parts_stand_around_the_contents() -> None:
    assert CHAT.render(messages("uhi")) == "<s>U:hi\nA:"
    assert CHAT.render(messages("sbrief", "uhi", "a yo ", "ubye")) == "<s>S:brief\nU:hi\nA: yo </s>U:bye\nA:"


def test_contents_are_trimmed_where_the_template_does() -> None:
    trimming = Chat(**{**vars(CHAT), "trim": True})
    assert trimming.render(messages("u \nhi\t")) == "<s>U:hi\nA:"
    assert CHAT.render(messages("u \nhi\t")) == "<s>U: \nhi\t\nA:"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([], "messages of none"),
        (messages("ua", "ub"), "messages of user, user"),
        (messages("aa"), "messages of assistant"),
        (messages("sa"), "messages of system"),
        (messages("ua", "sb"), "messages of user, system"),
        (messages("ua", "ab"), "the last message is the assistant's"),
        ([{"role": "tool", "content": "x"}], "message 1: expected a role"),
        ([{"role": "user"}], "message 1: expected a role"),
    ],
)
def test_what_is_no_conversation_is_refused(said: list[dict[str, str]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CHAT.render(said)


def test_a_model_without_a_system_message() -> None:
    with pytest.raises(UsageError, match="no system message"):
        Chat("", CHAT.user, CHAT.assistant, "").render(messages("sbrief", "uhi"))

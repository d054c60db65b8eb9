"""A model's chat template, found out by rendering it.

A template is a program in Jinja. Most of them write texts around the messages, and those can be read off what they
make of messages with known contents. Whether that is all they do is tried afterwards, on conversations that were not
used to find them out; a template that does more has no expression here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from saten_runtime.bundle.chat import ASSISTANT, SYSTEM, USER, Chat, Message, Role

__all__ = ["chat_of"]

# Contents that no template has in its own texts.
_MARKS = {SYSTEM: "‹system 1›", USER: "‹user 2›", ASSISTANT: "‹assistant 3›"}
_OTHER_DATE = "{% macro strftime_now(form) %}‹date 4›{% endmacro %}"
_DATED = "it writes the date, for which the bundle has that of the export"
_CONTENTS = ("Hi", "two\nlines\n\n", "  spaces  ", "", "\ttab <|x|> {{ 1 }} é", "a <think>b</think> c")


def chat_of(tokenizer: Any) -> tuple[Chat | None, str]:
    """The chat template of a tokenizer, and why it has none, or what of it a text cannot say; often nothing."""
    if not getattr(tokenizer, "chat_template", None):
        return None, ""
    try:
        found = _read_off(tokenizer)
    except Exception as cause:  # a template raises what it likes, and jinja many kinds
        return None, f"it refuses a plain conversation ({' '.join(str(cause).split())[:100]})"
    if found is None:
        return None, "it writes more than a text before and after each message"
    for trim in (False, True):
        chat = replace(found, trim=trim)
        if all(_rendered(tokenizer, each) == chat.render(each) for each in _conversations(chat)):
            return chat, _DATED if _is_dated(tokenizer) else ""
    return None, "it changes the contents of messages"


def _read_off(tokenizer: Any) -> Chat | None:
    """The texts around the marks of conversations; None where there is no such split."""
    two = _around(tokenizer, USER, ASSISTANT, USER)
    answered = _rendered(tokenizer, _marked(USER, ASSISTANT), answer=False)
    asked, prompt = (_rendered(tokenizer, _marked(USER), answer=answer) for answer in (False, True))
    after_user = asked.rpartition(_MARKS[USER])[2]
    after_assistant = answered.rpartition(_MARKS[ASSISTANT])[2]
    if two is None or not prompt.startswith(asked):
        return None
    opening, to_assistant, to_user, _ = two
    if not to_assistant.startswith(after_user) or not to_user.startswith(after_assistant):
        return None
    user = Role(to_user[len(after_assistant) :], after_user)
    assistant = Role(to_assistant[len(after_user) :], after_assistant)
    if not opening.endswith(user.before):
        return None
    opening = opening.removesuffix(user.before)
    return Chat(opening, user, assistant, prompt[len(asked) :], _system(tokenizer, user))


def _system(tokenizer: Any, user: Role) -> Role | None:
    """The texts around a system message; None where the template refuses one, drops it, or puts it elsewhere."""
    try:
        parts = _around(tokenizer, SYSTEM, USER)
    except Exception:  # as in `chat_of`
        return None
    if parts is None or not parts[1].endswith(user.before):
        return None
    return Role(parts[0], parts[1].removesuffix(user.before))


def _around(tokenizer: Any, *roles: str) -> list[str] | None:
    """The texts before, between and after the marks of these roles; None where a mark is not there once, in order."""
    rest, parts = _rendered(tokenizer, _marked(*roles), answer=False), []
    for role in roles:
        before, found, rest = rest.partition(_MARKS[role])
        if not found:
            return None
        parts.append(before)
    return [*parts, rest]


def _marked(*roles: str) -> list[Message]:
    return [{"role": role, "content": _MARKS[role]} for role in roles]


def _is_dated(tokenizer: Any) -> bool:
    """Whether another date makes another text; templates get it by the function `strftime_now`, which a macro hides."""
    other = _OTHER_DATE + tokenizer.get_chat_template()
    return _rendered(tokenizer, _marked(USER), chat_template=other) != _rendered(tokenizer, _marked(USER))


def _rendered(tokenizer: Any, messages: Sequence[Message], *, answer: bool = True, **given: Any) -> str:
    plain = [dict(message) for message in messages]
    return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=answer, **given))


def _conversations(chat: Chat) -> list[list[Message]]:
    """With and without a system message, of one to three questions, whose contents are all kinds of text."""
    found: list[list[Message]] = []
    for start in range(len(_CONTENTS)):
        contents = [*_CONTENTS[start:], *_CONTENTS[:start]]
        for turns in (1, 3, 5):
            roles = [(USER, ASSISTANT)[turn % 2] for turn in range(turns)]
            for said in ([], [SYSTEM]) if chat.system else ([],):
                pairs = zip([*said, *roles], contents, strict=False)
                found.append([{"role": role, "content": content} for role, content in pairs])
    return found

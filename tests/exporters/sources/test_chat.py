"""Templates of the common shapes are read off exactly; others are refused with a reason."""

from __future__ import annotations

import re

import pytest
from transformers import PreTrainedTokenizerFast

from saten_exporters.sources.chat import chat_of
from saten_runtime.errors import UsageError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
DATED = CHATML.replace("You help.", "Today is ' + strftime_now('%Y') + '.")
LOUD = CHATML.replace("message['content']", "message['content'] | upper")
COUNTING = CHATML.replace("message['role'] +", "message['role'] + (loop.index | string) +")
THINKING = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
REFUSING = "{{ raise_exception('not today') }}"


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    backend = Tokenizer(WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template)


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, ZEPHYR, MISTRAL], ids=["chatml", "llama3", "zephyr", "mistral"])
@pytest.mark.parametrize("system", [True, False])
def test_a_common_template_is_rendered_as_transformers_renders_it(template: str, system: bool) -> None:
    made = tokenizer(template)
    chat, why = chat_of(made)
    assert chat is not None, why
    messages = [{"role": "system", "content": "Be  brief. "}] * system
    messages += [
        {"role": role, "content": content}
        for role, content in (("user", "What is\n2 + 2? "), ("assistant", "4"), ("user", " And {3}?"))
    ]
    if system and template == MISTRAL:
        with pytest.raises(UsageError, match="no system message"):
            chat.render(messages)
        return
    assert chat.render(messages) == made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_the_default_system_message_is_kept() -> None:
    chat, _ = chat_of(tokenizer(CHATML))
    assert chat.render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("template", "why"), [(CHATML, ""), (DATED, "it writes the date, for which")])
def test_a_date_is_kept_and_said(template: str, why: str) -> None:
    chat, said = chat_of(tokenizer(template))
    assert chat is not None
    assert ("Today is 20" in chat.opening) == bool(why)
    assert said.startswith(why)
    assert bool(said) == bool(why)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, ""),
        (REFUSING, r"it refuses a plain conversation \(not today\)"),
        (LOUD, "it writes more than a text before and after each message"),
        (COUNTING, "it writes more than|it changes"),
        (THINKING, "it changes the contents of messages"),
    ],
    ids=["none", "refusing", "loud", "counting", "thinking"],
)
def test_another_template_is_none_and_says_why(template: str | None, reason: str) -> None:
    chat, why = chat_of(tokenizer(template))
    assert chat is None
    assert (why == "") == (reason == "")
    assert re.match(reason, why)

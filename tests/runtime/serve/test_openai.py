"""OpenAI's own client against the server: its objects, and the numbers of `Runner`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_runtime import Runner, Sampling

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed (extra saten-edge[test])")

TEXTS = ["w1 w2 w3", "w4", "w5 w6"]


def words(runner: Runner, how: Sampling) -> str:
    return "".join(runner.generate("w1 w2", how))


def test_models_are_listed_and_shown(client: Any) -> None:
    assert sorted(model.id for model in client.models.list()) == ["tiny", "writer"]
    assert client.models.retrieve("tiny").owned_by == "saten-edge"
    with pytest.raises(openai.NotFoundError, match="there are tiny, writer"):
        client.models.retrieve("other")


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_are_those_of_the_runner(client: Any, tiny: Path, encoding: str | None) -> None:
    given = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="tiny", input=TEXTS, **given)
    found = [each.embedding for each in answer.data]
    if encoding == "base64":
        import base64

        found = [np.frombuffer(base64.b64decode(each), np.float32) for each in found]
    expected = Runner.load(tiny).predict(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(np.array(found)[::-1] - expected).max() > 0.1  # another order would be seen
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: Any, tiny: Path) -> None:
    (found,) = client.embeddings.create(model="tiny", input="w1 w2", dimensions=3).data
    first = Runner.load(tiny).predict(["w1 w2"])[0, :3]
    np.testing.assert_allclose(found.embedding, first / np.linalg.norm(first), atol=1e-6)


def test_a_completion_is_that_of_the_runner(client: Any, writer: Path) -> None:
    answer = client.completions.create(model="writer", prompt="w1 w2", max_tokens=6, temperature=0)
    assert answer.choices[0].text == words(Runner.load(writer), Sampling(6, 0.0))
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 6, 10)


def test_a_seed_repeats_what_was_drawn(client: Any, writer: Path) -> None:
    def drawn(**how: Any) -> str:
        asked = {"model": "writer", "prompt": "w1 w2", "max_tokens": 12, "temperature": 2.0, **how}
        return client.completions.create(**asked).choices[0].text

    how = Sampling(12, 2.0, 0.9, 5)
    assert drawn(seed=5, top_p=0.9) == drawn(seed=5, top_p=0.9) == words(Runner.load(writer), how)
    assert len({drawn() for _ in range(4)}) > 1  # without one, each is another


def test_several_prompts_have_a_choice_each(client: Any) -> None:
    answer = client.completions.create(model="writer", prompt=["w1", "w9 w3"], max_tokens=3, temperature=0)
    alone = client.completions.create(model="writer", prompt="w9 w3", max_tokens=3, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].text == alone.choices[0].text
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client: Any, stream: bool) -> None:
    asked = {"model": "writer", "prompt": "w1 w2", "max_tokens": 8, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[len(text) // 2 :][:3]
    expected = text[: text.index(stop)]
    answer = client.completions.create(**asked, stop=[stop, "never"], stream=stream)
    if stream:
        pieces = list(answer)
        assert "".join(piece.choices[0].text for piece in pieces) == expected
        assert pieces[-1].choices[0].finish_reason == "stop"
    else:
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")


def test_a_stream_has_the_text_in_pieces_and_the_usage_at_its_end(client: Any) -> None:
    asked = {"model": "writer", "prompt": "w1 w2", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked)
    pieces = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = [piece.choices[0].text for piece in pieces if piece.choices]
    assert "".join(said) == whole.choices[0].text
    assert len([text for text in said if text]) > 3
    assert pieces[-1].usage == whole.usage
    assert len({piece.id for piece in pieces}) == 1


def test_the_end_of_the_context_is_a_length(client: Any) -> None:
    answer = client.completions.create(model="writer", prompt="w1", temperature=0)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 48 + 1  # the last token need not be read


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty: found 0.5, expected 0.0"),
        ({"n": 2}, "n: found 2, expected 1"),
        ({"temperature": 3}, "temperature: found 3"),
        ({"extra_body": {"guided": 1}}, "'guided': this server does not know it"),
        ({"max_tokens": 5000}, "max_tokens 5000: this server gives at most 1024"),
        ({"stop": [""]}, "stop: found"),
        ({"prompt": [1, 2]}, "token ids"),
        ({"prompt": "w1 " * 60}, "takes at most 48 tokens"),
        ({"prompt": "w1 " * 60, "stream": True}, "takes at most 48 tokens"),
        ({"model": "tiny"}, "serves /v1/embeddings, not /v1/completions"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_by_name(client: Any, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "writer", "prompt": "w1", "max_tokens": 3, **asked})
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[1, 2]], "token ids"),
        ("w1 " * 60, "more than the 48 tokens that tiny takes"),
        ([], "input: is missing or empty"),
    ],
    ids=["ids", "long", "none"],
)
def test_a_text_that_cannot_be_embedded_whole_is_refused(client: Any, given: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="tiny", input=given)
    assert words in caught.value.message


MESSAGES = [{"role": "developer", "content": "w9"}, {"role": "user", "content": "w1 w2"}]


def test_a_bundle_without_a_chat_template_says_so(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="writer", messages=MESSAGES)


@pytest.fixture(scope="module")
def talker(serving: Any, task_bundle: Callable[..., Path], writer: Path) -> Iterator[tuple[Any, Path]]:
    """A client, and the decoder behind it, which has a chat template."""
    chat = {"opening": "", "answer": "w30", "trim": False} | {
        role: {"before": before, "after": " w50 "}
        for role, before in (("system", "w20 "), ("user", "w21 "), ("assistant", "w22 "))
    }
    generation = {**json.loads((writer / "saten_edge.json").read_text())["generation"], "chat": chat}
    bundle = task_bundle("text-generation", name="talker", generation=generation)
    with serving([bundle]) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made, bundle


def test_messages_are_answered_as_by_the_runner(talker: tuple[Any, Path]) -> None:
    client, bundle = talker
    asked = {"model": "talker", "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 6}
    answer = client.chat.completions.create(**asked)
    plain = [{**MESSAGES[0], "role": "system"}, MESSAGES[1]]
    expected = "".join(Runner.load(bundle).generate(plain, Sampling(6, 0.0)))
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", expected)
    assert answer.usage.prompt_tokens == len(Runner.load(bundle).prompt_ids(plain))
    pieces = list(client.chat.completions.create(**asked, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]


def test_messages_that_are_no_conversation_are_refused(talker: tuple[Any, Path]) -> None:
    client, _ = talker
    with pytest.raises(openai.BadRequestError, match="the last message is the assistant's"):
        client.chat.completions.create(model="talker", messages=[MESSAGES[1], {"role": "assistant", "content": "w3"}])

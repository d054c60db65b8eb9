"""A chat in a bundle is the one that transformers has."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tiny_gguf import save_gguf

import saten_edge
from saten_edge.checkpoints.models import load_model
from saten_runtime import cli
from saten_runtime.errors import BundleError, UsageError
from saten_runtime.run.conversation import Conversation
from saten_runtime.run.generation import Sampling, stream, until
from saten_runtime.run.runner import Runner

pytest.importorskip("gguf", reason="the package gguf is not installed")

GREEDY = Sampling(max_tokens=10, temperature=0)
FIRST, SECOND = "the other hour", "an hour?"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("chat") / "tiny.gguf")


@pytest.fixture(scope="module")
def bundle(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chat") / "bundle"
    saten_edge.export(gguf, out)
    return out


def theirs(gguf: Path, messages: list[dict[str, str]]) -> str:
    loaded = load_model(gguf)
    ids = loaded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    made = loaded.model.generate(ids, do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0)[0]
    return str(loaded.tokenizer.decode(made[ids.shape[1] :], skip_special_tokens=True))


def test_two_turns_are_answered_as_transformers_answers_them(gguf: Path, bundle: Path) -> None:
    talk = Conversation(Runner.load(bundle), GREEDY, "Be kind.")
    messages = [{"role": "system", "content": "Be kind."}]
    for said in (FIRST, SECOND):
        messages.append({"role": "user", "content": said})
        answer = "".join(talk.say(said))
        assert answer == theirs(gguf, messages)
        messages.append({"role": "assistant", "content": answer})
    assert talk.messages == messages
    assert theirs(gguf, messages[:2]) != theirs(gguf, [messages[1]])  # the system message counts


def test_a_turn_reads_only_what_is_new(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner.load(bundle)
    decoder, read = runner.decoder(), []
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda ids, **how: (read.append(ids.shape[1]), forward(ids, **how))[1])
    first = runner.prompt_ids(FIRST)
    made = list(stream(decoder, first, runner.bundle.generation, GREEDY))
    second = [*first, *made, 20, 21]
    wanted = list(stream(runner.decoder(), second, runner.bundle.generation, GREEDY))
    start = len(read)
    assert list(stream(decoder, second, runner.bundle.generation, GREEDY)) == wanted
    assert read[0] == len(first)
    assert (len(made), read[start]) == (10, 3)  # the last token that was made, and two more


def test_a_decoder_that_read_something_else_starts_anew(bundle: Path) -> None:
    runner = Runner.load(bundle)
    decoder = runner.decoder()
    list(runner.generate_ids(FIRST, GREEDY, decoder=decoder))
    found = list(runner.generate_ids(SECOND, GREEDY, decoder=decoder))
    assert found == list(runner.generate_ids(SECOND, GREEDY))


def test_a_conversation_beyond_the_context_is_refused_and_stays(bundle: Path) -> None:
    talk = Conversation(Runner.load(bundle), GREEDY)
    "".join(talk.say(FIRST))
    before = list(talk.messages)
    with pytest.raises(UsageError, match="takes at most 512 tokens"):
        "".join(talk.say("x" * 600))
    assert talk.messages == before


def test_a_bundle_without_a_template_refuses_a_chat(tmp_path: Path) -> None:
    saten_edge.export(save_gguf(tmp_path / "plain.gguf", template=None), tmp_path / "bundle")
    with pytest.raises(BundleError, match="has no chat template that a bundle expresses"):
        "".join(Conversation(Runner.load(tmp_path / "bundle"), GREEDY).say("hi"))
    assert "saten-run chat" not in (tmp_path / "bundle" / "README.md").read_text("utf-8")


def test_the_command_answers_line_by_line(
    bundle: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{FIRST}\n{SECOND}\n"))
    assert cli.main(["chat", str(bundle), "-n", "10", "--temperature", "0", "--json"]) == 0
    answers = [json.loads(line)["content"] for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 2
    assert answers[0] == theirs(gguf, [{"role": "user", "content": FIRST}])
    assert cli.main(["generate", str(bundle), FIRST, "--chat", "-n", "10", "--temperature", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == answers[0]


def test_the_card_says_how_to_talk_to_it(bundle: Path) -> None:
    assert "saten-run chat ." in (bundle / "README.md").read_text("utf-8")


def test_a_system_message_needs_a_chat(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(bundle), FIRST, "--system", "Be kind."]) == 2
    assert "pass --chat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stops", "pieces", "wanted"),
    [
        ((), ["ab", "c"], "abc"),
        (("c",), ["ab", "cd"], "ab"),
        (("bcd",), ["ab", "c", "de"], "a"),
        (("bcd",), ["ab", "c", "e"], "abce"),
        (("bcd",), ["abc"], "abc"),
        (("d", "bc"), ["abcd"], "a"),
        (("a",), ["a"], ""),
    ],
)
def test_a_stop_ends_the_text_before_itself(stops: tuple[str, ...], pieces: list[str], wanted: str) -> None:
    assert "".join(until(stops, pieces)) == wanted


def test_pieces_come_as_soon_as_no_stop_can_begin_in_them() -> None:
    assert list(until(("bcd",), ["a", "b", "x", "bc"])) == ["a", "bx", "bc"]

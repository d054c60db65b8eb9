"""What each kind of tokenizer keeps: no text becomes unknown, and one whose pieces stay keeps them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from saten_edge.trimming.entries import Entries
from saten_edge.trimming.pieces import KINDS, Pieces
from saten_runtime.errors import ExportError, UsageError

CORPUS = [
    "the number of the path returns and reads the file of a number",
    "la rivière traverse la forêt, puis le garçon lit un livre",
    "der Weg führt über die Brücke und durch den Wald nach Süden",
    "returning readers numbered the returned files, reading paths",
]
WORDS = sorted({word for text in CORPUS for word in text.replace(",", " ").split()})
NEVER_SEEN = ["猫は庭", "😀", "zzz", "the-number", "ß", "", " ", "a\x00b", "numberness rereturned", "Wä ld"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL))
    return made


def bpe() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=160, special_tokens=SPECIAL))
    return made


def ends_of_words() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="@"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, end_of_word_suffix="</w>", continuing_subword_prefix="@"
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(CORPUS, trainer)
    return made


def byte_fallback() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL, *BYTES]))
    said = json.loads(made.to_str())
    said["added_tokens"] = [token for token in said["added_tokens"] if token["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(said))


def whole_words() -> Tokenizer:
    """As Llama 3's: a word that is an entry is taken as it is, whatever the merges say."""
    made = json.loads(byte_level().to_str())
    made["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(made))


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>"))
    return made


MADE: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": wordpiece,
    "BPE": bpe,
    "BPE, ends of words": ends_of_words,
    "BPE, byte level": byte_level,
    "BPE, byte fallback": byte_fallback,
    "BPE, whole words": whole_words,
    "Unigram": unigram,
}


def wrapped(made: Tokenizer) -> Any:
    ends = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    made.add_tokens(["zap"])
    made.enable_padding(pad_id=0, pad_token="<pad>")
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


@pytest.fixture(params=MADE, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return wrapped(MADE[request.param]())


def pieces(made: Tokenizer, text: str) -> list[str]:
    return list(made.encode(text, add_special_tokens=False).tokens)


def spelled(made: Tokenizer, text: str) -> tuple[int, str]:
    """How many unknown pieces a text has, and what its pieces say together."""
    encoded = made.encode(text, add_special_tokens=False)
    words = "".join(encoded.tokens)
    for mark in ("##", "@", "</w>"):
        words = words.replace(mark, "")
    return encoded.ids.count(made.token_to_id("<unk>")), words


def trimmed(tokenizer: Any, texts: list[str], size: int | None = None) -> tuple[Tokenizer, dict[int, int]]:
    """The tokenizer with what some texts use, and the new id of each old one."""
    entries, backend = Entries("here", tokenizer), tokenizer.backend_tokenizer
    counts = [0] * backend.get_vocab_size()
    for number in itertools.chain(*(backend.encode(text, add_special_tokens=False).ids for text in texts)):
        counts[number] += 1
    kept = sorted(entries.choose(counts, entries.always, size))
    numbers = {old: new for new, old in enumerate(kept)}
    return entries.renumbered(numbers), numbers


def bare(tokenizer: Any) -> Tokenizer:
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer.backend_tokenizer


def test_every_kind_is_tried() -> None:
    assert {name.partition(",")[0] for name in MADE} == set(KINDS)


def test_texts_that_count_keep_their_pieces(tokenizer: Any) -> None:
    chosen, others = CORPUS[:1], CORPUS[1:]
    made, numbers = trimmed(tokenizer, chosen)
    before = bare(tokenizer)
    made.no_padding()
    assert len(numbers) < before.get_vocab_size()
    for text in chosen:
        assert pieces(made, text) == pieces(before, text)
        assert made.encode(text).ids == [numbers[number] for number in before.encode(text).ids]
    assert any(pieces(made, text) != pieces(before, text) for text in others)


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
def test_nothing_becomes_unknown(tokenizer: Any, part: float) -> None:
    """Of any part of the entries that may go; twin: without single characters, something does."""
    before, entries = bare(tokenizer), Entries("here", tokenizer)
    size = len(entries.always) + int(part * (before.get_vocab_size() - len(entries.always)))
    made, numbers = trimmed(tokenizer, [], size)
    made.no_padding()
    assert len(numbers) == size
    order = random.Random(7)
    joined = ["".join(order.choices(WORDS, k=2)) for _ in range(50)]
    for text in [*CORPUS, *WORDS, *NEVER_SEEN, *joined]:
        assert spelled(made, text) == spelled(before, text)
        assert part < 1 or pieces(made, text) == pieces(before, text)


def test_without_its_characters_a_word_is_lost(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pieces, "_is_needed", lambda self, piece: False)
    before, (made, _) = bare(tokenizer), trimmed(tokenizer, [])
    made.no_padding()
    assert [text for text in CORPUS if spelled(made, text) != spelled(before, text)] == CORPUS


def test_a_word_that_goes_is_split(tokenizer: Any) -> None:
    made, _ = trimmed(tokenizer, ["returning"])
    made.no_padding()
    assert spelled(made, "number") == spelled(bare(tokenizer), "number")
    assert len(pieces(made, "number")) > len(pieces(bare(tokenizer), "number"))


def test_ids_are_renumbered_everywhere(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    made, numbers = trimmed(tokenizer, CORPUS[:1])
    said = json.loads(made.to_str())
    ids = made.get_vocab()
    assert sorted(ids.values()) == list(range(len(numbers)))
    assert {token["content"]: token["id"] for token in said["added_tokens"]} == {
        each: ids[each] for each in (*SPECIAL, "zap")
    }
    template = said["post_processor"]["special_tokens"]
    assert {name: template[name]["ids"] for name in template} == {name: [ids[name]] for name in ("<s>", "</s>")}
    assert said["padding"]["pad_id"] == ids["<pad>"]
    assert ids["zap"] < tokenizer.get_vocab()["zap"]


def test_trimming_twice_is_trimming_once(tokenizer: Any) -> None:
    once, _ = trimmed(tokenizer, CORPUS[:1])
    again, numbers = trimmed(wrapped(Tokenizer.from_str(once.to_str())), CORPUS[:1])
    assert again.get_vocab() == once.get_vocab()
    assert all(old == new for old, new in numbers.items())


def test_merges_are_those_of_what_stays() -> None:
    made, _ = trimmed(wrapped(byte_level()), CORPUS[:1])
    model = json.loads(made.to_str())["model"]
    assert model["merges"]
    assert all({*pair, "".join(pair)} <= model["vocab"].keys() for pair in model["merges"])


def test_the_most_used_stay() -> None:
    tokenizer = wrapped(wordpiece())
    least = len(Entries("here", tokenizer).always)
    texts = ["number number number", "returns returns", "path"]
    for more, wanted in ((1, ["number"]), (2, ["number", "returns"]), (3, ["number", "returns", "path"])):
        made, _ = trimmed(tokenizer, texts, least + more)
        assert [word for word in ("number", "returns", "path") if word in made.get_vocab()] == wanted


@pytest.mark.parametrize("post_processor", ["BertProcessing", "RobertaProcessing", "Sequence"])
def test_other_templates(post_processor: str) -> None:
    made = wordpiece()
    vocabulary = made.get_vocab()
    last = max(vocabulary, key=lambda piece: vocabulary[piece])
    pairs = (last, vocabulary[last]), ("<s>", vocabulary["<s>"])
    plain = getattr(processors, post_processor.replace("Sequence", "BertProcessing"))(*pairs)
    tokenizer = wrapped(made)
    sequence = processors.Sequence([processors.ByteLevel(), plain])
    tokenizer.backend_tokenizer.post_processor = sequence if post_processor == "Sequence" else plain
    tokenizer.backend_tokenizer.no_padding()
    small, numbers = trimmed(tokenizer, [])
    small.no_padding()
    assert small.encode("").ids == [numbers[vocabulary["<s>"]], numbers[vocabulary[last]]]
    assert numbers[vocabulary[last]] < vocabulary[last]


def test_sizes_that_do_not_fit_are_refused() -> None:
    tokenizer = wrapped(wordpiece())
    least, there = len(Entries("here", tokenizer).always), tokenizer.backend_tokenizer.get_vocab_size()
    for size in (least - 1, there + 1):
        with pytest.raises(UsageError, match=rf"--vocabulary {size}: expected {least}, .* to {there}, "):
            trimmed(tokenizer, CORPUS, size)
    for size in (least, there):
        assert len(trimmed(tokenizer, CORPUS, size)[1]) == size


def test_other_kinds_are_refused_by_name() -> None:
    made = Tokenizer(models.WordLevel({name: k for k, name in enumerate(SPECIAL)}, unk_token="<unk>"))
    with pytest.raises(ExportError, match="here: its tokenizer is of the kind WordLevel; there are WordPiece, BPE"):
        Entries("here", PreTrainedTokenizerFast(tokenizer_object=made))
    with pytest.raises(ExportError, match="here: its tokenizer, object, is a program in Python"):
        Entries("here", object())

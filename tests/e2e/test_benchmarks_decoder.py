"""The table of decoders: every engine reads the same model, and only what computes the right thing is timed."""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saten_runtime.errors import SatenError

FOLDER = Path(__file__).parents[2] / "benchmarks"
# Heads of 16, as narrow as onnxruntime-genai takes them, and fewer of keys than of queries.
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def decoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("decoder", FOLDER / "decoder.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "decoder", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def llama(decoder, texts, tmp_path_factory):
    """A random Llama whose logits differ enough between tokens to tell one order of rows from another."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("decoder") / "llama"
    decoder.random_llama(SIZES, texts, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.mul_(1 if "norm" in name else 5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(5).integers(SIZES["vocab_size"], size=24).tolist()


def read(engine, artifact, ids):
    """Logits of all ids in one run, and the same in two runs and single steps."""
    from peers.decoders import DECODERS

    decode = DECODERS[engine](artifact, 1)
    decode.reset()
    whole = decode.read(ids, every=True).copy()
    decode.reset()
    parts = [decode.read(ids[:9], every=True).copy(), *(decode.read([token]).copy() for token in ids[9:])]
    return whole, np.concatenate(parts)


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def expected(decoder, llama, ids):
    return read("torch", llama, ids)[0]


def test_torch_reads_in_steps_as_at_once(decoder, llama, ids, expected):
    assert distance(read("torch", llama, ids)[1], expected) <= decoder.rounding_bound(SIZES)


def gguf(llama, out, kind):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    from peers.gguf_llama import write_gguf

    write_gguf(llama, out, kind)
    return out


def test_llama_cpp_computes_what_torch_computes(decoder, llama, ids, expected, tmp_path):
    for found in read("llama.cpp", gguf(llama, tmp_path / "f32", "f32"), ids):
        assert distance(found, expected) <= decoder.rounding_bound(SIZES)


def test_without_the_order_of_rows_llama_cpp_computes_something_else(
    decoder, llama, ids, expected, tmp_path, monkeypatch
):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from peers import gguf_llama

    monkeypatch.setattr(gguf_llama, "interleaved", lambda rows, heads: rows)
    found, _ = read("llama.cpp", gguf(llama, tmp_path / "f32", "f32"), ids)
    assert distance(found, expected) > 100 * decoder.rounding_bound(SIZES)


@pytest.mark.parametrize(("kind", "bits"), [("q8_0", 8.5), ("q4_0", 4.5)])
def test_blocks_of_llama_cpp_are_as_large_and_as_near_as_their_bits_say(
    decoder, llama, ids, expected, tmp_path, kind, bits
):
    folder = gguf(llama, tmp_path / kind, kind)
    from gguf import GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(folder / "model.gguf").tensors}
    weight = tensors["blk.0.attn_q.weight"]
    assert weight.n_bytes * 8 == bits * weight.n_elements
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert "output.weight" not in tensors  # the head is the table
    found, _ = read("llama.cpp", folder, ids)
    assert decoder.rounding_bound(SIZES) < distance(found, expected) <= decoder.DISTANCE[kind]


def test_interleaving_pairs_the_halves_of_every_head():
    sys.path.insert(0, str(FOLDER))
    try:
        from peers.gguf_llama import interleaved
    finally:
        sys.path.remove(str(FOLDER))
    rows = np.arange(8, dtype=np.float32)[:, None]  # 2 heads of 4 rows
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def answer(decoder, logits, likeliest=(1, 2, 3, 4)):
    return decoder.Answers(logits, 7.0, np.array(likeliest))


def test_a_row_that_computes_something_else_is_not_timed(decoder):
    logits = np.random.default_rng(0).standard_normal((4, 16))
    torch, trained, random = answer(decoder, logits), decoder.TRAINED, decoder.random_shape(2)
    exact, coarse = decoder.DENSE[0], decoder.DENSE[3]
    bound = decoder.rounding_bound(trained.sizes)
    assert decoder.judge(exact, answer(decoder, logits * (1 + bound / 2)), torch, trained) == 7.0
    assert decoder.judge(coarse, answer(decoder, logits * 1.3), torch, random) is None
    off_by_much, other_tokens = answer(decoder, logits * (1 + 2 * bound)), answer(decoder, logits * 1.3, (9, 9, 3, 4))
    not_a_number = answer(decoder, logits * np.nan)
    for row, found, shape in (
        (exact, off_by_much, trained),
        (exact, answer(decoder, logits, (1, 2, 3, 9)), trained),
        (coarse, other_tokens, trained),
        (coarse, answer(decoder, -logits), random),
        (coarse, not_a_number, random),
    ):
        with pytest.raises(SatenError, match="differs from torch"):
            decoder.judge(row, found, torch, shape)


def test_the_rounding_bound_grows_with_layers_and_lengths(decoder):
    small = decoder.rounding_bound(SIZES)
    assert small < decoder.rounding_bound({**SIZES, "num_hidden_layers": 4}) < 2 * small
    assert decoder.rounding_bound({**SIZES, "intermediate_size": 4 * 96}) == pytest.approx(2 * small)


def test_every_engine_of_a_row_can_be_run_and_made(decoder):
    from peers.decoders import DECODERS

    engines = {row.engine for row in (*decoder.DENSE, *decoder.COMPRESSED)}
    assert engines == set(decoder.MODULES) == set(DECODERS) - {"torch"}
    names = [row.name for row in (*decoder.DENSE, *decoder.COMPRESSED)]
    assert len(names) == len(set(names))
    assert all(any(part in name for name in names) for part in decoder.QUICK)


def test_what_is_not_installed_is_left_out_and_said(decoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # importing it fails
    maker = decoder.Maker(replace(decoder.QUICKLY, steps=0), tmp_path, "0.25")
    row = next(row for row in decoder.DENSE if row.engine == "llama.cpp")
    table, left_out = decoder.rows_of([row], maker, decoder.Turns(decoder.COLUMNS, (1,), 1, 0.0))
    assert table == []
    assert list(left_out) == [row.name]
    assert f"{row.name}: left out, " in capsys.readouterr().err


def test_passages_are_python_s_own_text_and_none_is_on_both_sides(decoder):
    from corpus_python import python_corpus

    found = python_corpus(50, docstrings=False)
    assert len(found.held_out) == 50 < len(found.train)
    assert not set(found.held_out) & set(found.train)
    assert len(set(found.train)) == len(found.train)
    assert python_corpus(50, docstrings=False) == found
    assert any("lambda" in text for text in found.train)


class Bigrams:
    """A model that looks at the last token only, and writes down what it reads."""

    def __init__(self):
        self.table = np.random.default_rng(1).standard_normal((1000, 1000)).astype(np.float32)
        self.reads = []

    def reset(self):
        self.reads.append("reset")

    def read(self, ids, *, every=False):
        self.reads.append(len(ids))
        return self.table[ids] if every else self.table[ids[-1:]]


@pytest.fixture
def bigrams(decoder):
    from peers.decoder_worker import DecoderWorker

    worker = DecoderWorker()
    worker.decode, worker._load_ns, worker._fresh = Bigrams(), 10**12, True
    return worker


def test_a_score_is_the_negative_log_likelihood_of_every_token_but_the_first(bigrams):
    pairs = ((1, 2), (2, 3), (4, 5))
    table = bigrams.decode.table.astype(np.float64)
    nats = sum(np.log(np.exp(table[before]).sum()) - table[before, after] for before, after in pairs)
    found = bigrams.score([[1, 2, 3], [4, 5]])
    assert found["nats"] == pytest.approx(nats, rel=1e-12)
    assert found["tokens"] == 3
    assert found["likeliest"] == [table[before].argmax() for before, _ in pairs]


def test_a_divergence_is_the_mean_over_places_from_the_kept_logits(bigrams, tmp_path):
    texts, path = [[1, 2, 3], [4, 5]], str(tmp_path / "kept.npy")
    bigrams.keep(texts, path)
    kept = np.load(path)
    assert np.array_equal(kept, bigrams.decode.table[[1, 2, 4]])
    same = bigrams.score(texts, path)
    assert same["agreement"] == 1
    assert same["kl"] == pytest.approx(0, abs=1e-12)
    bigrams.decode.table = np.random.default_rng(2).standard_normal((1000, 1000)).astype(np.float32)
    found = bigrams.score(texts, path)
    p, q = (
        np.exp(table.astype(np.float64)) / np.exp(table.astype(np.float64)).sum(1, keepdims=True)
        for table in (kept, bigrams.decode.table[[1, 2, 4]])
    )
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)
    assert found["kl"] != pytest.approx((q * np.log(q / p)).sum(1).mean(), rel=1e-3)  # it is no distance
    assert found["agreement"] == np.mean(p.argmax(1) == q.argmax(1)) < 1


def test_a_prompt_is_one_read_and_generation_a_read_for_each_token(bigrams):
    from peers.decoder_worker import NEW_TOKENS

    first = bigrams.run(shape=(1, 128), iterations=2, min_ns=0)
    assert set(bigrams.decode.reads) == {"reset", 128}
    assert len(first["samples_ns"]) == 2
    assert len(first["first_ns"]) == 1
    assert first["first_ns"][0] > 10**12  # loading is in it
    bigrams.decode.reads.clear()
    second = bigrams.run(shape=(1, 1), iterations=2, min_ns=0)
    assert second["first_ns"] == []
    runs = bigrams.decode.reads.count("reset")
    assert bigrams.decode.reads == ["reset", *[1] * NEW_TOKENS] * runs


def test_logits_are_read_at_once_and_then_token_by_token(bigrams, tmp_path):
    bigrams.logits([[1, 2, 3, 4, 5]], str(tmp_path / "logits.npy"))
    assert bigrams.decode.reads == ["reset", 2, 1, 1, 1]
    assert np.array_equal(np.load(tmp_path / "logits.npy"), bigrams.decode.table[1:6])


def test_a_table_is_written_with_a_row_for_each_engine(decoder, warm_python, offline, tmp_path):
    """Random and tiny, so that nothing has to be trained."""
    program = (
        "import decoder, sys; from pathlib import Path; "
        f"decoder.random_shape = lambda layers: decoder.Shape({SIZES!r}, steps=0, finetuning_steps=0, texts=1); "
        "decoder.main()"
    )
    out = tmp_path / "decoder.json"
    options = ("--random", "--work", tmp_path / "work", "-o", out, "--rounds", 2, "--min-time", 0.02)
    command = [*warm_python, "-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r}); {program}"]
    command += [*map(str, options), "--only", "ORT dense fp32,saten-grouped fp32"]
    environment = {**offline, "SATEN_WARM_PYTHON": shlex.join(warm_python)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    stored = json.loads(out.read_text())
    assert stored["sizes"] == SIZES
    dense, saten = stored["rows"][:2]
    assert (dense["row"], saten["row"]) == ("ORT dense fp32", "saten-grouped fp32")
    assert dense["of_fastest_dense"] == {"pp128": [1, 1, 1], "tg64": [1, 1, 1]}
    for row in (dense, saten):
        assert row["failed"] is None
        assert row["perplexity"] is None
        assert row["tokens_per_s"]["pp128"] == pytest.approx(128_000 / row["ms"]["pp128"])
        assert row["tokens_per_s"]["tg64"] == pytest.approx(1000 / row["ms"]["tg64"])
        assert row["first_token_ms"] > row["load_ms"] > 0
        assert row["peak_anon_bytes"]["tg64"] >= row["peak_anon_bytes"]["pp128"] > 0
    assert saten["bytes"] < dense["bytes"]
    assert done.stdout == out.with_suffix(".md").read_text()

"""Runs of texts of like length, requests, and Prometheus's format."""

from __future__ import annotations

import asyncio
import re
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saten_runtime.errors import DataError
from saten_runtime.run.text import Ids
from saten_runtime.serve.batches import Batches, Full, _Waiting, alike
from saten_runtime.serve.metrics import Metrics
from saten_runtime.serve.schema import ChatRequest, CompletionRequest, EmbeddingRequest, parse_request


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_a_run_is_at_most_half_padding(lengths: list[int]) -> None:
    empty: Any = None
    part = [_Waiting(Ids(np.zeros(size, np.int64), np.zeros(size, np.int64)), empty) for size in lengths]
    runs = [[len(one.row) for one in run] for run in alike(part)]
    assert sorted(size for run in runs for size in run) == sorted(lengths)
    assert all(max(run) <= 2 * min(run) for run in runs)
    assert all(2 * before[0] < after[0] for before, after in pairwise(runs))  # no more than needed


def test_what_openais_interface_says_is_read() -> None:
    asked = parse_request(
        ChatRequest,
        b'{"model": "m", "messages": [{"role": "system", "content": "a", "refusal": null}, {"role": "user", "content":'
        b' [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}], "stop": "x", "temperature": null}',
    )
    assert [(one.role, one.content) for one in asked.messages] == [("system", "a"), ("user", "bc")]
    assert (list(asked.stop), asked.temperature, asked.stream) == (["x"], None, False)


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        (EmbeddingRequest, '{"input": "a"}', "model: is missing"),
        (EmbeddingRequest, '{"model": "m"}', "input: is missing"),
        (EmbeddingRequest, '{"model": "m", "input": "a", "dimensions": 0}', "dimensions: found 0"),
        (EmbeddingRequest, '{"model": "m", "input": "a", "encoding_format": "int8"}', 'expected "float" or "base64"'),
        (CompletionRequest, '{"model": "m", "prompt": "a", "seed": -1}', "seed: found -1"),
        (CompletionRequest, '{"model": "m", "prompt": "a", "top_p": 0}', "top_p: found 0"),
        (CompletionRequest, '{"model": "m", "prompt": "a", "echo": true}', "echo: found True"),
        (CompletionRequest, '{"model": "m", "prompt": "a", "logit_bias": {"1": 2}}', "logit_bias"),
        (CompletionRequest, '{"model": "m", "prompt": "a", "stream_options": {"x": true}}', "include_usage alone"),
        (CompletionRequest, '{"model": "m", "prompt": "a", "temperature": 1e999}', "not JSON"),
        (ChatRequest, '{"model": "m", "messages": [{"role": "tool", "content": "a"}]}', "role: found"),
        (ChatRequest, '{"model": "m", "messages": [{"role": "user", "content": "a", "name": "b"}]}', "unknown 'name'"),
        (ChatRequest, '{"model": "m", "messages": [{"role": "user", "content": null}]}', "content is missing"),
        (ChatRequest, '{"model": "m", "messages": ["a"]}', "messages[0]: found 'a', expected an object"),
        (ChatRequest, '{"model": "m", "messages": "a"}', "messages: found 'a', expected a list"),
        (
            ChatRequest,
            '{"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]}',
            "this server reads texts",
        ),
        (ChatRequest, '{"model": "m", "messages": [{"role": "user", "content": "a"}], "tools": []}', "'tools'"),
    ],
)
def test_what_cannot_be_honoured_is_named(kind: type, body: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        parse_request(kind, body.encode())


def test_only_so_many_texts_wait_and_those_of_nobody_do_not_count() -> None:
    may_run = threading.Event()

    def run(rows: list[Ids]) -> list[Any]:
        may_run.wait(20)
        return [np.float32(len(row)) for row in rows]

    async def ask() -> None:
        batches = Batches(run, most=1, queue=2, seen=lambda _: None)
        row = Ids(np.zeros(3, np.int64), np.zeros(3, np.int64))
        running = asyncio.create_task(batches.submit([row]))
        while not running.done() and (batches.waiting or not batches._arrived.is_set()):
            await asyncio.sleep(0)
        left = asyncio.create_task(batches.submit([row, row]))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        assert batches.waiting == 0
        waiting = asyncio.create_task(batches.submit([row, row]))
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await batches.submit([row])
        may_run.set()
        assert await waiting == [3, 3]
        assert await batches.submit([row]) == [3]
        await batches.close()

    asyncio.run(ask())


def test_counts_of_a_histogram_grow_with_its_bounds_and_names_are_escaped() -> None:
    metrics = Metrics()
    for texts in (1, 3, 500):
        metrics.batched('a "b"\n', texts)
    lines = [line for line in metrics.text({}, 7).splitlines() if line.startswith("saten_batch_texts")]
    assert [int(line.split()[-1]) for line in lines if "_bucket" in line] == [1, 1, 2, 2, 2, 2, 2, 2, 3]
    assert lines[-2:] == [
        r'saten_batch_texts_sum{model="a \"b\"\n"} 504',
        r'saten_batch_texts_count{model="a \"b\"\n"} 3',
    ]

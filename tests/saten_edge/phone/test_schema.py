"""The types of what may be posted."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from saten_edge.phone.schema import MOST_BODY_BYTES, MOST_SAMPLES, Answer, Bench, End, Output, parse_post
from saten_runtime.errors import DataError

ANSWER = {"run": "r", "bundle": 0, "question": 0, "loaded": {}, "elapsed_ns": 1, "outputs": {}}


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)))
def test_an_array_comes_back_bit_for_bit(array):
    text = base64.b64encode(array.astype("<f4").tobytes()).decode()
    back = Output(shape=list(array.shape), float32=text).array()
    assert back.shape == array.shape
    assert back.tobytes() == array.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("shape", "text"), [([1], "AAAA"), ([2], "AAAAAA=="), ([1], "AAAA AAA="), ([1], "é"), ([10**6] * 4, "AAAAAA==")]
)
def test_bytes_that_do_not_fill_the_shape(shape, text):
    with pytest.raises(DataError, match="outputs: "):
        Output(shape=shape, float32=text).array()


@pytest.mark.parametrize("shape", [[], [0], [-1], [1, 1, 1, 1, 1], [1.0], [10**7]])
def test_a_shape_that_is_none_is_refused(shape):
    post = {**ANSWER, "outputs": {"x": {"shape": shape, "float32": "AAAAAA=="}}}
    with pytest.raises(DataError, match=r"outputs\.x\.shape"):
        parse_post(Answer, json.dumps(post).encode())


def test_the_twin_that_is_taken():
    post = {**ANSWER, "outputs": {"x": {"shape": [1], "float32": "AAAAAA=="}}}
    assert parse_post(Answer, json.dumps(post).encode()).outputs["x"].array().tolist() == [0.0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("kind", [Answer, Bench, End])
def test_whatever_else_comes_is_refused_in_one_line(kind, content):
    with pytest.raises(DataError) as refusal:
        parse_post(kind, content)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_the_most_samples_fit_a_body():
    assert len(json.dumps([10**12] * MOST_SAMPLES, separators=(",", ":"))) < 0.6 * MOST_BODY_BYTES

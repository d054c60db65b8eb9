from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, ParityError
from saten_runtime.records.files import sha256_file
from saten_runtime.run.parity import (
    Comparison,
    check_parity,
    compare,
    compare_outputs,
    compare_tokens,
    parity_table,
    usual_sizes,
    write_case,
)
from saten_runtime.run.session import make_session
from saten_runtime.vocabulary.tasks import FEATURE_EXTRACTION, QUESTION_ANSWERING, TEXT_REGRESSION

BOUND = 1e-5
SHAPES = {"one": (1, 1), "padded": (2, 7)}

# The header of an array of 2^50 numbers, and none of them
HUGE = (
    b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1125899906842624,), }".ljust(117)
    + b"\n"
)

CopyOf = Callable[[Path], Path]
Change = Callable[[str, dict[str, np.ndarray]], None]


def rehash(folder: Path, relative: float | None = BOUND) -> Path:
    """Make the manifest list what lies in the folder, so that only the content can be found fault with."""
    manifest = json.loads((folder / "saten_edge.json").read_text())
    manifest["tolerance"] = {} if relative is None else {"relative": relative}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "saten_edge.json"]
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in files
    }
    (folder / "saten_edge.json").write_text(json.dumps(manifest))
    return folder


def feeds_of(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(shape[1]).integers(4, 60, shape)
    mask = np.ones_like(ids)
    mask[1:, 3:] = 0  # the second text is 3 tokens long
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@pytest.fixture
def make_checked(tiny: Path, copy_of: CopyOf) -> Callable[..., Path]:
    """make_checked(change, relative=…) -> `tiny` with cases; change(case, arrays) may spoil them."""

    def make(change: Change = lambda case, arrays: None, relative: float | None = BOUND) -> Path:
        folder = copy_of(tiny)
        session = make_session(Bundle.open(folder))
        for case, shape in SHAPES.items():
            feeds = feeds_of(shape)
            values = {**feeds, "last_hidden_state": session.run(None, feeds)[0]}
            change(case, values)
            write_case(folder, case, values)
        return rehash(folder, relative)

    return make


# --- compare_outputs ---------------------------------------------------------------------------------------------


def brute_force(got: np.ndarray, wanted: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The definition of `Comparison`, number by number."""
    pairs = [
        (float(got[b, t, k]), float(wanted[b, t, k]))
        for b in range(got.shape[0])
        for t in range(got.shape[1])
        for k in range(got.shape[2])
        if mask[b, t] == 1
    ]
    differences = [x - y for x, y in pairs]
    euclidean = math.sqrt(math.fsum(d * d for d in differences)) / math.sqrt(math.fsum(y * y for _, y in pairs))
    largest = max(map(abs, differences)) / max(abs(y) for _, y in pairs)
    lengths = math.sqrt(math.fsum(x * x for x, _ in pairs)) * math.sqrt(math.fsum(y * y for _, y in pairs))
    return max(euclidean, largest), math.fsum(x * y for x, y in pairs) / lengths


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.floats(1e-6, 2))
def test_against_the_definition(seed: int, batch: int, tokens: int, width: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    wanted = random.standard_normal((batch, tokens, width)).astype(np.float32)
    got = (wanted + noise * random.standard_normal(wanted.shape)).astype(np.float32)
    mask = (np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))).astype(np.int64)
    error, cosine = compare_outputs(got, wanted, mask)
    expected_error, expected_cosine = brute_force(got, wanted, mask)
    assert error == pytest.approx(expected_error, rel=1e-9)
    assert cosine == pytest.approx(expected_cosine, rel=1e-9, abs=1e-12)


def test_known_numbers() -> None:
    wanted = np.array([[[3.0, 4.0]]], np.float32)
    assert compare_outputs(wanted, wanted, None) == (0, 1)
    assert compare_outputs(wanted + np.float32([0, 1]), wanted, None)[0] == pytest.approx(1 / 4)  # the largest
    assert compare_outputs(wanted + 1, wanted, None)[0] == pytest.approx(math.sqrt(2) / 5)  # Euclidean
    assert compare_outputs(-wanted, wanted, None) == (2, -1)


def test_padding_is_ignored_and_nothing_else_is() -> None:
    wanted = np.ones((2, 4, 3), np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    padding, token = wanted.copy(), wanted.copy()
    padding[1, 2:], token[1, 1] = 99, 99
    assert compare_outputs(padding, wanted, mask) == (0, pytest.approx(1))
    assert compare_outputs(token, wanted, mask)[0] > 1
    assert compare_outputs(padding, wanted, None)[0] > 1


def test_one_vector_per_text_has_no_padding() -> None:
    wanted = np.ones((2, 5), np.float32)
    got = wanted.copy()
    got[1] = 3
    assert compare_outputs(got, wanted, np.array([[1, 1, 1], [1, 0, 0]]))[0] > 1


@pytest.mark.parametrize("shape", [(2, 4), (4, 2, 3), (2, 4, 3, 1), (2, 4, 1), (1, 4, 3)])
def test_another_shape_is_infinitely_wrong(shape: tuple[int, ...]) -> None:
    error, cosine = compare_outputs(np.ones(shape, np.float32), np.ones((2, 4, 3), np.float32), None)
    assert error == math.inf
    assert math.isnan(cosine)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bound", [None, 1e9])
@pytest.mark.parametrize("side", ["got", "wanted"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity minus infinity, which is the point
def test_what_is_not_finite_never_passes(bad: float, bound: float | None, side: str) -> None:
    values = {"got": np.ones((1, 2, 3), np.float32), "wanted": np.ones((1, 2, 3), np.float32)}
    values[side][0, 1, 2] = bad
    error, cosine = compare_outputs(values["got"], values["wanted"], None)
    assert not Comparison("case", "output", True, [1, 2, 3], error, cosine, bound).holds


@pytest.mark.parametrize("error", [math.nan, math.inf, 2e-5])
def test_beyond_the_bound_fails(error: float) -> None:
    assert not Comparison("case", "output", True, [1], error, 1.0, BOUND).holds


@pytest.mark.parametrize("error", [0.0, 1e-9, BOUND])
def test_within_the_bound_holds(error: float) -> None:
    assert Comparison("case", "output", True, [1], error, 1.0, BOUND).holds


def test_without_a_bound_any_finite_answer_holds() -> None:
    assert Comparison("case", "output", True, [1], 0.3, 0.9, None).holds
    assert not Comparison("case", "output", True, [1], math.inf, math.nan, None).holds


def test_zeros_equal_zeros() -> None:
    zeros = np.zeros((1, 2, 3), np.float32)
    assert compare_outputs(zeros, zeros, None)[0] == 0
    assert compare_outputs(zeros + 1, zeros, None)[0] > 1e300


@given(arrays.arrays(np.float32, (2, 3, 2), elements=st.floats(1, 1024, width=32)), st.floats(0.5, 100))
def test_the_scale_does_not_matter(wanted: np.ndarray, factor: float) -> None:
    got = wanted + np.float32(1)
    error, _ = compare_outputs(got.astype(np.float64) * factor, wanted.astype(np.float64) * factor, None)
    same, _ = compare_outputs(got.astype(np.float64), wanted.astype(np.float64), None)
    assert error == pytest.approx(same, rel=1e-9)


def test_a_number_near_zero_errs_as_those_of_the_usual_size_do() -> None:
    """One logit that is 0 by chance is rounded as all others are; what is more than rounding is still seen."""
    cases = {"single": {"logits": np.array([[3e-3]])}, "padded": {"logits": np.array([[1.0], [-1.0], [1.0]])}}
    usual = usual_sizes(TEXT_REGRESSION, cases, ["logits"])["logits"]
    assert usual == pytest.approx(math.sqrt(3 / 4), rel=1e-5)
    wanted, rounding = cases["single"]["logits"], 2.0**-24
    assert compare_outputs(wanted + rounding, wanted, None)[0] > BOUND
    assert compare_outputs(wanted + rounding, wanted, None, usual)[0] == pytest.approx(rounding / usual)
    assert compare_outputs(wanted + rounding, wanted, None, usual)[0] < BOUND
    assert compare_outputs(wanted + 1e-4, wanted, None, usual)[0] > BOUND
    assert compare_outputs(wanted + 1e-4, 1e3 * wanted, None, usual)[0] > 0.9  # larger numbers: their own size


def test_the_usual_size_leaves_out_padding_alone() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    logits = np.where(mask == 1, 2.0, 1e6)
    case = {"a": {"attention_mask": mask, "logits": logits, "hidden": logits[..., None]}}
    for task in (QUESTION_ANSWERING, FEATURE_EXTRACTION):
        assert usual_sizes(task, case, ["logits", "hidden"]) == {"logits": 2, "hidden": 2}
    assert usual_sizes(TEXT_REGRESSION, case, ["logits"])["logits"] > 1e5  # a row per text


# --- tokens ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6), st.floats(0, 3))
def test_tokens_against_the_definition(seed: int, batch: int, tokens: int, words: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    wanted = (4 * random.standard_normal((batch, tokens, words))).astype(np.float32)
    got = (wanted + noise * random.standard_normal(wanted.shape)).astype(np.float32)
    mask = (np.arange(tokens) < random.integers(1, tokens + 1, (batch, 1))).astype(np.int64)
    same, divergences = [], []
    for b, t in zip(*np.nonzero(mask), strict=True):
        ours, theirs = ([math.exp(float(z)) for z in logits[b, t]] for logits in (got, wanted))
        same.append(ours.index(max(ours)) == theirs.index(max(theirs)))
        pairs = [(q / sum(ours), p / sum(theirs)) for q, p in zip(ours, theirs, strict=True)]
        divergences.append(math.fsum(p * math.log(p / q) for q, p in pairs))
    share, divergence = compare_tokens(got, wanted, mask)
    assert share == pytest.approx(sum(same) / len(same))
    assert divergence == pytest.approx(math.fsum(divergences) / len(divergences), rel=1e-6, abs=1e-9)


def test_tokens_of_padding_do_not_count() -> None:
    wanted = np.eye(4, dtype=np.float32)[None] * 9
    got = wanted.copy()
    got[0, 3] = got[0, 3, ::-1]
    assert compare_tokens(got, wanted, np.array([[1, 1, 1, 0]])) == (1, 0)
    share, divergence = compare_tokens(got, wanted, None)
    assert share == 0.75
    assert divergence > 1


@pytest.mark.parametrize(("task", "seen"), [("text-classification", True), ("feature-extraction", False)])
def test_one_row_per_text_is_compared_whole(task: str, seen: bool, make_checked: Callable[..., Path]) -> None:
    """As many classes as tokens: the mask of the tokens must not hide a class."""

    def change(case: str, values: dict[str, np.ndarray]) -> None:
        values["attention_mask"] = values["attention_mask"].copy()
        values["last_hidden_state"][-1, -1] += 1 if case == "padded" else 0

    folder = make_checked(change)
    manifest = json.loads((folder / "saten_edge.json").read_text())
    (folder / "saten_edge.json").write_text(json.dumps({**manifest, "task": task}))
    assert (not all(row.holds for row in compare(Bundle.open(folder)))) == seen


# --- check_parity ------------------------------------------------------------------------------------------------


def test_every_case_with_optimizations_off_and_on(make_checked: Callable[..., Path]) -> None:
    comparisons = check_parity(Bundle.open(make_checked()))
    assert {(row.case, row.optimized) for row in comparisons} == {(case, on) for case in SHAPES for on in (False, True)}
    for row in comparisons:
        assert row.output == "last_hidden_state"
        assert tuple(row.shape[:2]) == SHAPES[row.case]
        assert row.relative_error <= BOUND == row.bound
        assert row.cosine == pytest.approx(1)


def off_by(relative: float) -> Change:
    def change(case: str, values: dict[str, np.ndarray]) -> None:
        if case == "padded":
            values["last_hidden_state"] = values["last_hidden_state"] * np.float32(1 + relative)

    return change


def spoil_padding(case: str, values: dict[str, np.ndarray]) -> None:
    values["last_hidden_state"][1:, 3:] = 1e6


def spoil_a_token(case: str, values: dict[str, np.ndarray]) -> None:
    values["last_hidden_state"][-1, 0] += 1


def shuffle_rows(case: str, values: dict[str, np.ndarray]) -> None:
    values["last_hidden_state"] = values["last_hidden_state"][::-1]


def put_nan(case: str, values: dict[str, np.ndarray]) -> None:
    values["last_hidden_state"][0, 0, 0] = np.nan


def other_shape(case: str, values: dict[str, np.ndarray]) -> None:
    values["last_hidden_state"] = values["last_hidden_state"][..., :-1]


@pytest.mark.parametrize("change", [off_by(1e-6), spoil_padding])
def test_rounding_and_padding_pass(change: Change, make_checked: Callable[..., Path]) -> None:
    assert all(row.holds for row in check_parity(Bundle.open(make_checked(change))))


@pytest.mark.parametrize(
    ("change", "failures"),
    [(off_by(1e-2), 2), (off_by(2 * BOUND), 2), (spoil_a_token, 4), (shuffle_rows, 2), (put_nan, 4), (other_shape, 4)],
)
def test_another_answer_fails(change: Change, failures: int, make_checked: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_checked(change))
    with pytest.raises(ParityError, match=rf"; {failures} of 4 comparisons fail") as caught:
        check_parity(bundle)
    assert caught.value.exit_code == 3
    assert "tiny: output 'last_hidden_state' of case " in str(caught.value)
    assert sum(not row.holds for row in compare(bundle)) == failures


def test_the_message_names_the_worst(make_checked: Callable[..., Path]) -> None:
    with pytest.raises(ParityError, match=r"case padded .* is 9\.90e-03 from torch's, allowed are 1\.00e-05"):
        check_parity(Bundle.open(make_checked(off_by(1e-2))))


def test_without_a_bound_only_nonsense_fails(make_checked: Callable[..., Path], copy_of: CopyOf) -> None:
    rows = check_parity(Bundle.open(make_checked(off_by(0.5), relative=None)))
    assert {row.bound for row in rows} == {None}


@pytest.mark.parametrize("change", [put_nan, other_shape])
def test_without_a_bound_nonsense_fails(change: Change, make_checked: Callable[..., Path]) -> None:
    with pytest.raises(ParityError, match="is not finite"):
        check_parity(Bundle.open(make_checked(change, relative=None)))


def test_inputs_that_the_graph_refuses(make_checked: Callable[..., Path]) -> None:
    def change(case: str, values: dict[str, np.ndarray]) -> None:
        values["input_ids"] = values["input_ids"].astype(np.float32)

    with pytest.raises(ParityError, match="case one: "):
        check_parity(Bundle.open(make_checked(change)))


# --- cases that cannot be read -----------------------------------------------------------------------------------


def test_a_bundle_without_cases(tiny: Path) -> None:
    with pytest.raises(BundleError, match=r"carries no validation/\*\.npy to compare with"):
        check_parity(Bundle.open(tiny))


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00", b"\x80\x04N.", b"PK\x03\x04", HUGE])
def test_a_damaged_array(content: bytes, make_checked: Callable[..., Path]) -> None:
    folder = make_checked()
    (folder / "validation" / "one.input_ids.npy").write_bytes(content)
    with pytest.raises(BundleError, match=r"one\.input_ids\.npy: not an array"):
        check_parity(Bundle.open(rehash(folder)))


def test_an_array_of_words(make_checked: Callable[..., Path]) -> None:
    folder = make_checked()
    np.save(folder / "validation" / "one.last_hidden_state.npy", np.array(["a"]))
    with pytest.raises(BundleError, match=r"one\.last_hidden_state\.npy: not an array \(of numbers; it holds <U1\)"):
        check_parity(Bundle.open(rehash(folder)))


def test_a_truncated_array(make_checked: Callable[..., Path]) -> None:
    folder = make_checked()
    file = folder / "validation" / "padded.last_hidden_state.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BundleError, match="not an array"):
        check_parity(Bundle.open(rehash(folder)))


def test_an_array_that_is_a_pickle(make_checked: Callable[..., Path]) -> None:
    folder = make_checked()
    np.save(folder / "validation" / "one.input_ids.npy", np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(BundleError, match="not an array"):
        check_parity(Bundle.open(rehash(folder)))


@pytest.mark.parametrize("name", ["input_ids", "last_hidden_state"])
def test_a_case_that_lacks_an_array(name: str, make_checked: Callable[..., Path]) -> None:
    folder = make_checked()
    (folder / "validation" / f"padded.{name}.npy").unlink()
    with pytest.raises(BundleError, match=rf"case padded lacks {name}"):
        check_parity(Bundle.open(rehash(folder)))


# --- what is shown -----------------------------------------------------------------------------------------------


def test_the_table_for_people() -> None:
    rows = [
        Comparison("short", "last_hidden_state", False, [1, 7, 8], 1.234e-7, 0.99999999, 2.5e-5),
        Comparison("padded", "logits", True, [2, 3], math.inf, math.nan, None),
    ]
    head, first, second = parity_table(rows).splitlines()
    assert head.split("  ")[0].strip() == "case"
    assert "relative error" in head
    assert first.split() == [
        "short",
        "last_hidden_state",
        "1",
        "×",
        "7",
        "×",
        "8",
        "off",
        "1.23e-07",
        "2.50e-05",
        "1.000000",
    ]
    assert second.split() == ["padded", "logits", "2", "×", "3", "on", "inf", "-", "nan"]
    assert first.index("off") == second.index("on")


def test_the_table_of_a_decoder_says_more() -> None:
    row = Comparison("steps", "logits", True, [1, 9, 60], 1e-6, 1.0, 1e-5, same_token=0.75, kl=0.0123)
    head, first = parity_table([row]).splitlines()
    assert head.split()[-3:] == ["same", "token", "kl"]
    assert first.split()[-2:] == ["0.750", "1.23e-02"]
    plain, _ = parity_table([Comparison("one", "logits", True, [1, 3], 1e-6, 1.0, 1e-5)]).splitlines()
    assert "kl" not in plain


def test_what_is_not_finite_is_null_in_json() -> None:
    row = Comparison("padded", "logits", True, [2, 3], math.inf, math.nan, None).to_json()
    assert json.loads(json.dumps(row, allow_nan=False)) == {
        "case": "padded",
        "output": "logits",
        "optimized": True,
        "shape": [2, 3],
        "relative_error": None,
        "cosine": None,
        "bound": None,
        "same_token": None,
        "kl": None,
    }

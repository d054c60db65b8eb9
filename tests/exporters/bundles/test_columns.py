"""Of a large vocabulary a bundle carries some logits, and a wrong graph is still seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saten_edge.checkpoints.models import LoadedModel, load_model
from saten_exporters import export
from saten_exporters.bundles import verify
from saten_runtime.bundle.folder import Bundle
from saten_runtime.errors import BundleError, ParityError
from saten_runtime.run.parity import check_parity, compare, in_columns, judge, read_cases

COLUMNS = 48


@pytest.fixture(scope="module")
def llama(make_tiny) -> LoadedModel:
    return load_model(make_tiny("llama", "text-generation"))


@pytest.fixture
def thin(llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr(verify, "MOST_COLUMNS", COLUMNS)
    return export(llama, tmp_path / "thin")


def test_some_logits_are_stored_the_likeliest_among_them(thin: Bundle, llama: LoadedModel) -> None:
    vocabulary = llama.model.config.vocab_size
    for case, arrays in read_cases(thin).items():
        columns, logits = arrays["columns"], arrays["logits"]
        assert COLUMNS <= len(columns) == logits.shape[-1] < vocabulary, case
        whole = verify.answered(llama, _case(llama, case), ["logits"])["logits"]
        assert np.array_equal(whole[..., columns], logits)
        assert set(np.unique(whole.argmax(-1))) <= set(columns.tolist())
    check_parity(thin)


def _case(llama: LoadedModel, name: str):
    from saten_exporters.tracing.signatures import kind_of

    return kind_of(llama).cases(llama)[name]


def test_a_small_vocabulary_is_stored_whole(llama: LoadedModel, tmp_path: Path) -> None:
    whole = export(llama, tmp_path / "whole")
    assert all("columns" not in arrays for arrays in read_cases(whole).values())


def test_other_weights_are_seen(thin: Bundle, llama: LoadedModel, tmp_path: Path) -> None:
    """The twin: what is stored tells another model from this one."""
    apart = verify.approximation(thin, llama)
    assert all(row.relative_error == 0 for row in apart)
    weight = llama.model.model.norm.weight
    kept = weight.detach().clone()
    try:
        weight.data.mul_(1.001)
        assert all(row.relative_error > 1e-4 for row in verify.approximation(thin, llama))
        rows = compare(export(llama, tmp_path / "other"))
    finally:
        weight.data.copy_(kept)
    judge("other", rows)
    arrays = read_cases(thin)["prompt"]
    (thin.path / "validation" / "prompt.logits.npy").unlink()
    np.save(thin.path / "validation" / "prompt.logits.npy", arrays["logits"] * np.float32(1.01))
    with pytest.raises(ParityError, match="of case prompt"):
        check_parity(thin)


@pytest.mark.parametrize("columns", [[-1, 2], [0, 9], [[0, 1]], [0.0, 1.0]])
def test_columns_beyond_the_vocabulary_are_refused(columns: list) -> None:
    outputs = {"logits": np.zeros((1, 2, 9), np.float32)}
    assert in_columns(outputs, {"columns": np.array([0, 8])})["logits"].shape == (1, 2, 2)
    with pytest.raises(BundleError, match="beyond the 9 of the model"):
        in_columns(outputs, {"columns": np.array(columns)})

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saten_runtime import Bundle, SatenError
from saten_runtime.errors import BundleError, RuntimeMismatch
from saten_runtime.run.memory_modes import MEMORY_MODES
from saten_runtime.run.session import make_session, session_entries

MakeBundle = Callable[..., Path]


def refusal(folder: Path) -> SatenError:
    with pytest.raises(SatenError) as caught:
        make_session(Bundle.open(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return caught.value


def test_options_reach_onnxruntime(tiny: Path) -> None:
    for name, mode in MEMORY_MODES.items():
        options = make_session(Bundle.open(tiny), threads=2, memory=name).get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.inter_op_num_threads == 1
        assert options.enable_cpu_mem_arena is mode.arena
        assert not options.enable_mem_pattern
        assert options.get_session_config_entry("session.disable_prepacking") == str(int(not mode.prepacking))
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        for key in ("mlas.disable_kleidiai", "mlas.qnbit.force_fp32", "mlas.use_lut_gemm"):
            assert options.get_session_config_entry(key) == session_entries(mode)[key] == "0"


def test_a_graph_as_it_is_written_runs_on_standard_operators(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr("saten_runtime.run.session.register", registered.append)
    make_session(Bundle.open(tiny), optimized=False)
    assert not registered
    make_session(Bundle.open(tiny))
    assert len(registered) == 1


@pytest.mark.parametrize("needed", [{}, {"session.x64quantprecision": "1"}])
def test_exact_products_are_asked_for_where_they_are_not_exact(
    monkeypatch: pytest.MonkeyPatch, needed: dict[str, str]
) -> None:
    monkeypatch.setattr("saten_runtime.run.session.exact_entries", lambda: needed)
    entries = session_entries(MEMORY_MODES["fast"])
    assert ("session.x64quantprecision" in entries) is bool(needed)


def test_opset_of_the_future(make_bundle: MakeBundle) -> None:
    error = refusal(make_bundle("future", opset=999))
    assert isinstance(error, RuntimeMismatch)
    assert "Opset 999" in str(error)
    assert "std::" not in str(error)


def test_unknown_operator(make_bundle: MakeBundle) -> None:
    error = refusal(make_bundle("strange", domain="saten"))
    assert isinstance(error, RuntimeMismatch)
    assert "Strange" in str(error)


def test_older_onnxruntime_than_the_bundle_needs(make_bundle: MakeBundle) -> None:
    error = refusal(make_bundle("new", manifest={"smallest_onnxruntime": "99.1"}))
    assert isinstance(error, RuntimeMismatch)
    assert "99.1" in str(error)


def test_version_that_is_none(make_bundle: MakeBundle) -> None:
    with pytest.raises(BundleError, match="'soon'"):
        make_session(Bundle.open(make_bundle("soon", manifest={"smallest_onnxruntime": "soon"})))


@pytest.mark.parametrize("content", [b"", b"\x00", b"garbage" * 100])
def test_graph_that_is_none(copy_of: Callable[[Path], Path], tiny: Path, content: bytes) -> None:
    folder = copy_of(tiny)
    bundle = Bundle.open(folder)
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        make_session(bundle)
    assert "\n" not in str(caught.value)


def test_truncated_weights(copy_of: Callable[[Path], Path], tiny: Path) -> None:
    folder = copy_of(tiny)
    bundle = Bundle.open(folder)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(BundleError, match=r"model\.onnx"):
        make_session(bundle)

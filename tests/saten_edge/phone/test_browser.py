"""The page in headless Chromium, at a phone's size: it runs bundles, posts, and the report shows it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saten_edge.checkpoints.models import load_model
from saten_edge.console import Talk
from saten_edge.phone import Address, make_job, ort
from saten_edge.phone.prices import calibrate_page
from saten_edge.reports import build_report, html_page
from saten_exporters import export
from saten_exporters.choice.prices import read_prices, shipped_prices
from saten_runtime.accuracy.evaluate import evaluate
from saten_runtime.bench.plan import Plan
from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import Postprocess
from saten_runtime.errors import UsageError
from saten_runtime.run.pooling import pool

PHONE = {"width": 390, "height": 844}
DONE = '#title:text-is("Done")'
START_AGAIN = '#go:text-is("Start again")'
SEND_AGAIN = '#go:text-is("Send again")'
WHOLE_RUN_MS = 60_000


@pytest.fixture
def phone(chromium) -> Iterator[Any]:
    """A page at a phone's size; whatever it complains of fails the test."""
    context = chromium.new_context(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert complaints == []


def link(served) -> str:
    return f"http://{served.client.host}:{served.client.port}/#{served.client.token}"


def measure(page, served) -> None:
    page.goto(link(served))
    page.click("#go:enabled")
    page.wait_for_selector(DONE, timeout=WHOLE_RUN_MS)


def test_two_bundles_are_measured_and_the_report_shows_them(phone, served, dense, saten, pairs):
    measure(phone, served)
    assert phone.locator("tbody tr").count() == 3 * 2  # two sizes and the accuracy, two bundles each
    assert phone.locator("#chart rect:not(.track)").count() == 4
    bench = json.loads((served.run.folder / "bench.json").read_text())
    evaluation = json.loads((served.run.folder / "eval.json").read_text())
    assert "HeadlessChrome" in bench["environment"]["user_agent"]
    assert bench["environment"]["cross_origin_isolated"] is True
    assert [reason for reason in bench["verdict"]["reasons"] if "torch" in reason or "validation" in reason] == []
    report = build_report([Bundle.open(dense), Bundle.open(saten)], bench, evaluation)
    assert all(row.p50_ms(tokens) > 0 for row in report.rows for tokens in (8, 16))
    assert report.rows[1].ratio(16, "dense-fp32") is not None
    shown = html_page(report)
    assert "HeadlessChrome" in shown
    assert "recall@1" in shown
    # fp32 here and there differ by the order of sums alone; a place in the ranking may hang on that.
    got = {row["bundle"]: row["metrics"] for row in evaluation["rows"]}
    wanted = {row.bundle: row.metrics for row in evaluate([dense, saten], pairs, reference=dense).rows}
    assert got["dense-fp32"] == pytest.approx(wanted["dense-fp32"], abs=1 / 12 + 1e-9)
    assert got["saten-int8"]["cosine"] == pytest.approx(wanted["saten-int8"]["cosine"], abs=0.02)


def test_the_outputs_hold_the_bound_that_the_export_held(phone, served, job, dense):
    measure(phone, served)
    agreement = served.run.bench.environment["agreement with torch"]
    assert agreement["dense-fp32"]["relative_error"] <= Bundle.open(dense).manifest.tolerance["relative"]
    assert agreement["dense-fp32"]["cosine"] > 1 - 1e-6
    assert 1e-4 < agreement["saten-int8"]["relative_error"] < 0.3


def test_two_threads_where_the_page_is_isolated(phone, dense, serving, tmp_path):
    alone = make_job([dense], Plan(threads=(1, 2), tokens=(8,), min_time_s=0.0, rounds=1))
    with serving(alone, tmp_path / "run") as served:
        measure(phone, served)
    cells = {cell.threads: cell for cell in served.run.bench.cells}
    assert {threads: cell.failed for threads, cell in cells.items()} == {1: None, 2: None}


def test_an_operator_that_is_missing_is_one_line_and_the_rest_goes_on(phone, dense, foreign, serving, tmp_path):
    both = make_job([foreign, dense], Plan(tokens=(8,), min_time_s=0.0, rounds=1))
    with serving(both, tmp_path / "run") as served:
        measure(phone, served)
    cells = {cell.bundle: cell for cell in served.run.bench.cells}
    assert "Unheard" in cells["foreign"].failed
    assert "\n" not in cells["foreign"].failed
    assert cells["dense-fp32"].failed is None
    assert [row.bundle for row in served.run.evaluation.rows] == ["dense-fp32"]


def test_a_file_that_changed_is_not_run(phone, dense, serving, tmp_path):
    folder = shutil.copytree(dense, tmp_path / "changed")
    job = make_job([folder], Plan(tokens=(8,), min_time_s=0.0, rounds=1))
    weights = bytearray((folder / "model.onnx.data").read_bytes())
    weights[100] ^= 1
    (folder / "model.onnx.data").write_bytes(weights)
    with serving(job, tmp_path / "run") as served:
        phone.goto(link(served))
        phone.click("#go:enabled")
        phone.wait_for_selector("#problem:visible")
        assert "sha256 differs" in phone.text_content("#problem")
    assert served.run.bench is None


def test_stop_and_start_again(phone, served):
    phone.goto(link(served))
    phone.click("#go:enabled")
    phone.wait_for_selector("#stage-measure.now", timeout=WHOLE_RUN_MS)
    phone.click("text=Stop")
    phone.wait_for_selector(START_AGAIN)
    assert phone.text_content("#problem").startswith("Stopped.")
    phone.click(START_AGAIN)
    phone.wait_for_selector(DONE, timeout=WHOLE_RUN_MS)
    assert len(served.run.evaluation.rows) == 2


def test_a_dead_link_says_so(chromium, served):
    served.run.close()
    page = chromium.new_page()
    page.goto(link(served))
    page.wait_for_selector("#problem:visible")
    assert "not valid any more" in page.text_content("#problem")
    assert page.is_disabled("#go")
    page.close()


def test_offline_the_page_opens_measures_and_sends_later(chromium, served):
    context = chromium.new_context(viewport=PHONE, is_mobile=True)
    page = context.new_page()
    page.goto(link(served))
    page.evaluate("navigator.serviceWorker.ready")
    page.click("#go:enabled")
    page.wait_for_selector("#stage-measure.now", timeout=WHOLE_RUN_MS)  # everything was downloaded
    page.reload()
    page.wait_for_selector("#go:enabled")
    context.set_offline(True)
    page.reload()
    page.wait_for_selector("#problem:visible")
    assert "cannot be reached" in page.text_content("#problem")
    page.click("#go:enabled")
    page.wait_for_selector(SEND_AGAIN, timeout=WHOLE_RUN_MS)
    assert served.run.bench is None
    context.set_offline(False)
    page.click(SEND_AGAIN)
    page.wait_for_selector(DONE)
    assert served.run.bench is not None
    context.close()


def test_prices_of_this_browser_choose_the_forms_of_an_export(phone, small_prices, tiny_saten, tmp_path):
    """As `devices calibrate page` measures them and `export --prices` takes them."""
    links: queue.Queue[str] = queue.Queue()
    job = dataclasses.replace(small_prices, rounds=1)
    with ThreadPoolExecutor(1) as pool:
        here = Address("127.0.0.1")
        measured = pool.submit(calibrate_page, job, here, tmp_path / "page.json", links.put, Talk(quiet=True))
        phone.goto(links.get(timeout=30))
        assert not phone.is_visible("#models-section")
        phone.click("#go:enabled")
        phone.wait_for_selector(DONE, timeout=WHOLE_RUN_MS)
        path, verdict = measured.result(30)
    assert phone.text_content("#verdict").startswith("✓" if verdict.valid else "Do not trust")
    prices = read_prices(path, "web")
    assert set(prices.table) == set(shipped_prices("web").table)
    assert prices.table != shipped_prices("web").table
    with pytest.raises(
        UsageError, match=r"measured on wasm32 \(browser\), which --target x86-64 is not for; choose web"
    ):
        read_prices(path, "x86-64")
    bundle = export(load_model(tiny_saten), tmp_path / "out", target="web", prices=path)
    stage = bundle.manifest.recipe.stages[-1]
    assert "HeadlessChrome" in stage.inputs["prices"]["cpu"]
    assert stage.inputs["prices"]["onnxruntime"] == f"{ort.VERSION} for the web"
    assert bool(bundle.manifest.notices) is not verdict.valid


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 100_000])
def test_sha256_is_that_of_hashlib(phone, served, length):
    content = np.random.default_rng(length).bytes(length)
    phone.goto(link(served))
    code = """async ([text, cut]) => {
        const { Sha256 } = await import("/sha256.js");
        const bytes = Uint8Array.from(atob(text), (mark) => mark.charCodeAt(0));
        return new Sha256().update(bytes.subarray(0, cut)).update(bytes.subarray(cut)).hex();
    }"""
    for cut in {0, length // 3, length}:
        got = phone.evaluate(code, [base64.b64encode(content).decode(), cut])
        assert got == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("how", ["mean", "cls"])
def test_pooling_is_that_of_saten_runtime(phone, served, how):
    rng = np.random.default_rng(5)
    hidden, mask = rng.standard_normal((3, 7, 4)).astype(np.float32), (rng.random((3, 7)) < 0.6).astype(np.int64)
    mask[:2, 0] = 1  # batches are padded on the right
    mask[2] = 0  # a text without a token
    phone.goto(link(served))
    code = """async ([data, shape, mask, how]) => {
        const { pool } = await import("/tensors.js");
        const { shape: made, data: rows } = pool(Float32Array.from(data), shape, mask, how);
        return [made, [...rows]];
    }"""
    shape, rows = phone.evaluate(code, [hidden.ravel().tolist(), hidden.shape, mask.ravel().tolist(), how])
    wanted = pool(hidden, mask, Postprocess(how))
    # float32 sums of at most seven terms: seven roundings of what is summed.
    bound = 7 * np.finfo(np.float32).eps * np.abs(hidden).sum(axis=1)
    assert shape == [3, 4]
    assert (np.abs(np.reshape(rows, (3, 4)) - wanted) <= bound).all()
    assert not (np.abs(np.reshape(rows, (3, 4)) - wanted[::-1]) <= bound).all()


def test_the_command_ends_after_one_run_and_the_report_takes_its_files(phone, dense, saten, pairs, tmp_path):
    """The whole way as a person goes it: serve, scan, report."""
    out = tmp_path / "phone"
    command = [sys.executable, "-m", "saten_edge"]
    options = ["--host", "127.0.0.1", "--once", "--tokens", "8", "--rounds", "2", "--min-time", "0", "--data", pairs]
    with subprocess.Popen(
        [*command, "phone", dense, saten, "-o", out, "--baseline", dense, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        shown = process.stderr.readline()
        phone.goto(shown.rpartition(" ")[2].strip())
        phone.click("#go:enabled")
        phone.wait_for_selector(DONE, timeout=WHOLE_RUN_MS)
        printed, _ = process.communicate(timeout=20)
    assert process.returncode in (0, 4)  # 4: a busy machine makes a benchmark invalid
    assert printed.startswith(f"{out / 'run-1'}:\n")
    files = ["--bench", out / "run-1" / "bench.json", "--eval", out / "run-1" / "eval.json"]
    report = subprocess.run(
        [*command, "report", dense, saten, *files, "--format", "csv"], capture_output=True, text=True, check=True
    )
    assert report.stdout.count("\n") == 3
    assert Path(out / "run-1" / "samples.jsonl").is_file()

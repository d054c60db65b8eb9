"""Probes of every form: they are written, timed in processes of their own, and give every price that forms have."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from saten_exporters.choice.fitting import fitted
from saten_exporters.choice.prices import shipped_prices
from saten_exporters.choice.probes import Sizes, samples_of, write_probes
from saten_runtime.bench import probing
from saten_runtime.bench.probing import PROBES_FILE, read_probing, time_probes
from saten_runtime.bench.verdict import MIN_SAMPLES, Timed
from saten_runtime.errors import DataError

TINY = Sizes(((128, 128),), (256, 64), (1, 8))
MANY_ROWS = 1 << 13  # of which no machine computes `MIN_SAMPLES` runs in a turn


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probes") / "probes.zip"
    write_probes(path, TINY)
    return path


def test_there_is_a_probe_of_every_family(tmp_path: Path) -> None:
    subjects = write_probes(tmp_path / "probes.zip", TINY)
    for native, target in ((False, "x86-64"), (True, "x86-64+kernels")):
        steps = [step for each in subjects.values() if native or not each.native for step in each.steps]
        assert {f"{step.family} {precision}" for precision, step in steps} == set(shipped_prices(target).table)


def test_the_archive_is_the_same_every_time(archive: Path, tmp_path: Path) -> None:
    write_probes(tmp_path / "again.zip", TINY)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    write_probes(tmp_path / "other.zip", Sizes(TINY.shapes, TINY.table, (1,)))
    assert (tmp_path / "other.zip").read_bytes() != archive.read_bytes()


def test_what_is_timed_gives_prices(archive: Path, tmp_path: Path) -> None:
    subjects = write_probes(tmp_path / "probes.zip", TINY)
    result = time_probes(archive, rounds=1)
    assert read_probing(json.loads(json.dumps(result.to_json()))) == result
    active = result.environment["kernels"]["state"] == "active"
    wanted = {(name, rows) for name, each in subjects.items() for rows in TINY.rows if active or not each.native}
    assert {(each.probe, each.rows) for each in result.times} == wanted
    prices = fitted([sample for _, sample in samples_of(subjects, result)])
    assert set(prices) == set(shipped_prices("x86-64+kernels" if active else "x86-64").table)


def test_too_few_runs_are_no_result(tmp_path: Path) -> None:
    write_probes(tmp_path / "probes.zip", Sizes(TINY.shapes, TINY.table, (MANY_ROWS,)))
    result = time_probes(tmp_path / "probes.zip", rounds=1)
    assert min(each.count for each in result.times) < MIN_SAMPLES
    assert not result.verdict.valid
    assert f"at least {MIN_SAMPLES} are needed" in " ".join(result.verdict.reasons)


def without(archive: Path, out: Path, **changed: bytes | None) -> Path:
    """A copy without, or with other, members; PROBES stands for the list."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            key = "PROBES" if name == PROBES_FILE else name
            content = changed.get(key, source.read(name))
            if content is not None:
                target.writestr(name, content)
    return out


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (None, "expected an archive of probes"),
        (b"[]", "expected a JSON object"),
        (b'{"schema_version": 9, "rows": [1], "probes": []}', "schema_version is 9, expected 1"),
        (b'{"schema_version": 1, "rows": [0], "probes": []}', "rows[0]: found 0"),
        (b'{"schema_version": 1, "rows": [1], "probes": [{"name": 3}]}', "expected"),
        (b'{"schema_version": 1, "rows": [1], "probes": []}', "no probe 'idle'"),
        (
            b'{"schema_version": 1, "rows": [], "probes": [{"name": "idle", "width": 1, "ids": 0, "native": false}]}',
            "has no rows",
        ),
    ],
)
def test_an_archive_that_is_none_is_refused(listing: bytes | None, words: str, archive: Path, tmp_path: Path) -> None:
    damaged = without(archive, tmp_path / "damaged.zip", PROBES=listing)
    with pytest.raises(DataError) as caught:
        time_probes(damaged)
    assert words in str(caught.value)


def test_a_member_that_does_not_unpack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probes.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr(PROBES_FILE, b" " * 1000)
    content = bytearray(path.read_bytes())
    content[30 + len(PROBES_FILE)] |= 0b110  # behind the head of the file: a type of block that DEFLATE does not have
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected an archive of probes"):
        time_probes(path)


def test_a_turn_is_disturbed_once(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Timed] = []
    original = probing.judge

    def watched(states: Any, cells: Any, *rest: Any, **more: Any) -> Any:
        judged.extend(cells)
        return original(states, cells, *rest, **more)

    monkeypatch.setattr(probing, "judge", watched)
    time_probes(archive, rounds=1)
    told = [cell for cell in judged if cell.disturbances]
    assert sorted(int(cell.name.split()[-2]) for cell in told) == list(TINY.rows)
    assert [len(cell.disturbances) for cell in told] == [1, 1]
    assert len(judged) > len(told)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "probes.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="expected an archive of probes"):
        time_probes(tmp_path / "probes.zip")

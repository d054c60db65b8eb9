"""The agent, run for real on this machine: its folder, its lock, uploads that go on and are checked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saten_edge.devices import agent, channel
from saten_edge.devices.board import Board, Item
from saten_runtime.errors import DeviceError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * agent.CHUNK_BYTES + 17))
    return path


def sending(board: Board, item: Item) -> int:
    """Put a file there; how many bytes had to be sent."""
    sent: list[int] = []
    offset = board.begin(item)
    if offset is not None:
        board.put(item, offset, sent.append)
    return sum(sent)


class TestFolder:
    def test_it_is_private(self, stand):
        with Board(stand, "token"):
            pass
        assert (stand.root.stat().st_mode & 0o777, stand.root.stat().st_uid) == (0o700, os.geteuid())
        for path in stand.root.rglob("*"):
            assert not path.lstat().st_mode & 0o077

    @pytest.mark.parametrize("kind", ["link", "open to all"])
    def test_a_strangers_is_refused(self, kind, stand, tmp_path):
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        if kind == "link":
            stand.root.symlink_to(tmp_path / "elsewhere")
        else:
            stand.root.mkdir()
            stand.root.chmod(0o777)
        with pytest.raises(DeviceError, match="expected a folder of this user that nobody else may enter"):
            Board(stand, "token")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_one_that_cannot_be_made(self, stand, tmp_path):
        (tmp_path / "file").write_text("")
        stand.root = tmp_path / "file" / "board"
        with pytest.raises(DeviceError, match=r"^stand: .*/file: Not a directory$|^stand: .*/board: Not a directory$"):
            Board(stand, "token")

    def test_nothing_is_left_after_cleaning(self, stand, file):
        with Board(stand, "token") as board:
            sending(board, Item.of(file, "data/file"))
            board.clean()
        assert not stand.root.exists()


class TestLock:
    def test_a_second_one_is_told_who_is_there(self, stand):
        with Board(stand, "one"):
            holder = json.loads((stand.root / "lock").read_text())
            with pytest.raises(
                DeviceError, match=rf"^stand: busy: {re.escape(holder['owner'])} has used it since \d{{4}}-"
            ):
                Board(stand, "two")
        assert set(holder) == {"token", "owner", "pid", "boot_id", "since"}
        with Board(stand, "two"):
            pass

    def test_the_same_job_ends_a_connection_that_hangs(self, stand):
        """Half open: the board does not know yet that the workstation is gone."""
        first = Board(stand, "one")
        with Board(stand, "one") as board:
            assert board.free_bytes > 0
        with contextlib.closing(first._channel), pytest.raises(channel.Disconnected):
            first.free([])

    def test_what_a_killed_one_left_is_no_lock(self, stand):
        with Board(stand, "one") as board:
            os.kill(json.loads((stand.root / "lock").read_text())["pid"], 9)
            with pytest.raises(channel.Disconnected):
                board.free([])
        with Board(stand, "two"):
            pass


class TestUpload:
    def test_it_arrives_once(self, stand, file):
        item = Item.of(file, "bundles/0/model $(touch pwned) 'x\n-rf")
        with Board(stand, "token") as board:
            assert sending(board, item) == item.bytes
            assert sending(board, item) == 0
        assert (stand.root / item.path).read_bytes() == file.read_bytes()
        assert not list(Path.cwd().glob("pwned"))

    def test_it_goes_on_where_it_was_cut(self, stand, file):
        item = Item.of(file, "wheels/file")
        with Board(stand, "token") as board, pytest.raises(RuntimeError, match="cut"):
            board.put(item, board.begin(item), lambda size: (_ for _ in ()).throw(RuntimeError("cut")))
        assert not (stand.root / item.path).exists()
        with Board(stand, "token") as board:
            assert sending(board, item) == item.bytes - agent.CHUNK_BYTES
        assert (stand.root / item.path).read_bytes() == file.read_bytes()

    def test_a_partial_that_is_not_of_this_file_is_sent_anew(self, stand, file):
        item = Item.of(file, "wheels/file")
        with Board(stand, "token") as board:
            board.begin(item)
            (stand.root / "wheels/file.partial").write_bytes(b"x" * agent.CHUNK_BYTES)
            assert sending(board, item) == 2 * item.bytes - agent.CHUNK_BYTES
        assert (stand.root / item.path).read_bytes() == file.read_bytes()

    def test_damage_on_the_board_is_repaired(self, stand, file):
        item = Item.of(file, "wheels/file")
        with Board(stand, "token") as board:
            sending(board, item)
            (stand.root / item.path).write_bytes(b"x" * item.bytes)
            assert sending(board, item) == item.bytes

    def test_damage_on_the_way_twice_is_an_error(self, stand, file):
        item = Item(file, "wheels/file", file.stat().st_size, "0" * 64)
        with Board(stand, "token") as board, pytest.raises(DeviceError, match="file arrived damaged twice"):
            sending(board, item)
        assert not (stand.root / item.path).exists()

    def test_an_empty_file(self, stand, tmp_path):
        (tmp_path / "empty").write_bytes(b"")
        with Board(stand, "token") as board:
            sending(board, Item.of(tmp_path / "empty", "data/empty"))
        assert (stand.root / "data/empty").read_bytes() == b""

    @pytest.mark.parametrize("path", ["../outside", "/etc/outside", "a/../../outside", ""])
    def test_nothing_leaves_the_folder(self, path, stand, file, tmp_path):
        with Board(stand, "token") as board, pytest.raises(DeviceError, match="no path inside the folder"):
            board.begin(Item.of(file, path))
        assert {entry.name for entry in tmp_path.iterdir()} == {"board", "file"}

    def test_a_full_disk_is_one_line_with_what_is_free(self, stand, file):
        """A limit on the size of files stands in for the end of the disk."""
        command = stand.command
        stand.command = lambda bootstrap: [
            "sh",
            "-c",
            f"ulimit -f 2048; trap '' XFSZ; {command(bootstrap)[2]}",
            sys.executable,
        ]
        with Board(stand, "token") as board, pytest.raises(DeviceError, match=r"File too large, \d+ MiB free$"):
            sending(board, Item.of(file, "data/file"))

    def test_only_what_is_kept_survives_a_lack_of_room(self, stand, file):
        with Board(stand, "token") as board:
            for path in ("bundles/a/x", "bundles/b/x", "data/c/x", "wheels/d"):
                sending(board, Item.of(file, path))
            board.free(["bundles/b", "wheels/d"])
        kept = {str(path.relative_to(stand.root)) for path in stand.root.rglob("*") if path.is_file()}
        assert kept == {"lock", "bundles/b/x", "wheels/d"}


class TestSource:
    def test_it_needs_nothing_but_the_standard_library(self):
        source = Path(agent.__file__).read_text()
        command = [sys.executable, "-I", "-S", "-c", "import sys; exec(sys.stdin.read(), {'__name__': 'agent'})"]
        assert subprocess.run(command, input=source, text=True).returncode == 0

    def test_its_syntax_is_that_of_python_3_7(self):
        import ast

        ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 7))

    def test_the_line_for_the_shell_holds_nothing_that_varies(self, make_stand):
        one, two = make_stand("one"), make_stand("two")
        for stand in (one, two):
            with Board(stand, "token"):
                pass
        assert one.commands == two.commands

    def test_shells_agree_on_that_line(self):
        found: dict[str, Any] = {}
        for shell in ("sh", "bash", "dash"):
            code = channel.BOOTSTRAP.replace("exec python3", f"exec {sys.executable}")
            source = b"print(6 * 7)\n"
            done = subprocess.run([shell, "-c", code], input=b"%d\n" % len(source) + source, capture_output=True)
            found[shell] = done.stdout
        assert set(found.values()) == {b"42\n"}


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestRun:
    @pytest.fixture
    def board(self, stand, runtime, tmp_path):
        runtime(steps=1)
        from saten_edge.devices.deploy import Cargo, deploy

        with Board(stand, "token") as board:
            env = deploy(board, stand, Cargo([]), lambda *_: None, print)
            yield board, env

    def test_how_it_ended(self, board):
        board, env = board
        assert board.start("eval", env, ["eval"]) == "started"
        assert list(board.follow("eval", 0))[-1:] in ([], [b""])
        assert board.rc("eval") == 0
        assert board.start("eval", env, ["eval"]) == "ended"
        assert json.loads(board.get("eval", "out/eval.json", most=10_000))["task"] == "search"

    def test_a_result_that_is_too_large(self, board):
        board, env = board
        board.start("eval", env, ["eval"])
        list(board.follow("eval", 0))
        with pytest.raises(DeviceError, match=r"out/eval\.json holds more than 10 bytes"):
            board.get("eval", "out/eval.json", most=10)

    def test_forgotten_runs_are_gone(self, board, stand):
        board, env = board
        board.start("eval", env, ["eval"])
        list(board.follow("eval", 0))
        board.forget()
        assert list((stand.root / "runs").iterdir()) == []

    def test_nothing_of_the_users_python_reaches_an_environment_of_ours(self, stand, runtime, monkeypatch):
        from saten_edge.devices.deploy import Cargo, deploy

        monkeypatch.setenv("PYTHONPATH", str(stand.root.parent))
        runtime("print({key: os.environ[key] for key in sorted(os.environ) if key.startswith(('PYTHON', 'TMP'))})")
        with Board(stand, "token") as board:
            board.start("eval", deploy(board, stand, Cargo([]), lambda *_: None, print), ["eval"])
            list(board.follow("eval", 0))
            seen = board.get("eval", "stdout", most=10_000).decode()
        assert seen.strip() == repr({"PYTHONUTF8": "1", "TMPDIR": str(stand.root / "tmp")})

    def test_a_run_that_nobody_follows_ends(self, stand, runtime, monkeypatch):
        """The agent is sent with a shorter patience."""
        from saten_edge.devices.deploy import Cargo, deploy

        source = Path(agent.__file__).read_text().replace("GRACE_S = 180.0", "GRACE_S = 1.0")
        monkeypatch.setattr(channel.inspect, "getsource", lambda module: source)
        runtime("def at_step(step): time.sleep(60)")
        with Board(stand, "token") as board:
            board.start("bench", deploy(board, stand, Cargo([]), lambda *_: None, print), ["bench"])
        rc = stand.root / "runs/token/bench/rc"
        wait_until(rc.exists)
        assert rc.read_text() == "130"
        with Board(stand, "other"):
            pass
        assert not rc.exists()

    def test_a_run_whose_folder_is_gone_ends(self, board, stand, runtime):
        board, env = board
        runtime("def at_step(step): time.sleep(60)")
        from saten_edge.devices.deploy import Cargo, deploy

        env = deploy(board, stand, Cargo([]), lambda *_: None, print)
        board.start("bench", env, ["bench"])
        wait_until((stand.root / "runs/token/bench/out/samples.jsonl").exists)
        board.forget()
        board._channel.close()
        wait_until(lambda: not holders(stand.root / "lock"))


def holders(path: Path) -> list[str]:
    """Processes that have the file open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(handle) == str(path) for handle in (folder / "fd").iterdir()):
                found.append(folder.name)
    return found

"""A Python that has imported torch already: `python …` as a person types it, without the seconds of its imports.

    with WarmPython(COMMANDS) as python:
        subprocess.run([*python.command, "-m", "saten_edge", "export", …], cwd=…, env=…, capture_output=True)

A server imports the modules once. Each command is a process of its own, forked from the server, with the arguments, the
folder, the environment and the three streams of its caller; it ends as it would have ended, and dies with its caller.
It is a client that connects them, so anything that runs programs can run it: subprocess, a shell, a script.
What differs from a new process: hash seeds are the server's, and limits and process group, which are not passed on.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import subprocess

# What the commands of saten-edge import, some of it only on their way.
COMMANDS = (
    "saten_edge.cli.commands",
    "saten_edge.stages",
    "saten_edge.training.job",
    "saten_exporters.bundles.layouts",
    "torch.export._trace",
    "torch._functorch.aot_autograd",
    "onnxscript.function_libs.torch_lib.ops",
    "transformers.models.bert.modeling_bert",
)
# Variables that Python and libraries read while they start or are imported. A command that has them otherwise than the
# server runs in a new process after all.
READ_AT_IMPORT = ("PYTHON", "HF_", "TRANSFORMERS_", "LANG", "LC_", "LD_", "MKL_", "OPENBLAS_")
NEW_PROCESS = "a new process"


class WarmPython:
    """A server that lives as long as the `with` block; `command` stands for the path of a Python."""

    command: list[str]

    def __init__(self, modules: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
        self._modules = list(modules)
        # How many threads there are is each command's own affair.
        self._environment = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}

    def __enter__(self) -> WarmPython:
        import subprocess
        import tempfile

        self._folder = tempfile.TemporaryDirectory(prefix="warm-")  # short: a socket's path has 107 bytes
        path = os.path.join(self._folder.name, "python")
        self.command = [sys.executable, "-IS", os.path.abspath(__file__), path]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(64)  # commands wait here until the imports are done
            handle = listener.fileno()
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
            command = [sys.executable, os.path.abspath(__file__), "--serve", str(handle), *self._modules]
            # In a session of its own: Ctrl-C is for the commands, not for the server.
            self._server: subprocess.Popen[bytes] = subprocess.Popen(
                command, env=self._environment, pass_fds=[handle], start_new_session=True, **pipes
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()  # the end of its stdin is its end
        self._folder.cleanup()


# --- the client ------------------------------------------------------------------------------------------------------


def ask(path: str, arguments: list[str]) -> int:
    """Have the server run `python arguments`; its exit code, or this process's end by the same signal."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"\n"], [0, 1, 2])
        server.sendall(json.dumps(request, allow_nan=False).encode() + b"\n")
        answer = json.loads(server.makefile().readline() or "1")
    if answer == NEW_PROCESS:
        os.execv(sys.executable, [sys.executable, *arguments])
    if answer < 0:
        if -answer != signal.SIGKILL:
            signal.signal(-answer, signal.SIG_DFL)
        os.kill(os.getpid(), -answer)
    return int(answer)


# --- the server ------------------------------------------------------------------------------------------------------


def serve(listener: socket.socket, modules: list[str]) -> None:
    """Import the modules, then fork for each client, until stdin ends."""
    import gc
    import importlib

    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a collection in a command would copy every page of what was imported
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            attend(connection)
        connection.close()
        reap()


def reap() -> None:
    """Let go of those that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def attend(connection: socket.socket) -> NoReturn:
    """Fork once more for the command, and tell the client how that ended."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    if at_import(request["environment"]) != at_import(os.environ):
        connection.sendall(json.dumps(NEW_PROCESS, allow_nan=False).encode())
        os._exit(0)
    alive, held = os.pipe()  # ends when the command does
    command = os.fork()
    if command == 0:
        connection.close()
        os.close(alive)
        take_streams(streams)
        end(**request)
    for handle in (held, *streams):
        os.close(handle)
    ends: list[Any] = [alive, connection]
    ready, _, _ = select.select(ends, [], [])
    if connection in ready:  # the client was killed
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    connection.sendall(json.dumps(os.waitstatus_to_exitcode(status), allow_nan=False).encode())
    os._exit(0)


def at_import(environment: Any) -> dict[str, str]:
    """The variables that were read while the server started."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def take_streams(streams: list[int]) -> None:
    """Make them stdin, stdout and stderr."""
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
        os.close(handle)


def end(**request: Any) -> NoReturn:
    """Run a command and end as Python does. What was imported is not taken to pieces: that would copy it first."""
    import atexit
    import threading
    import traceback

    code: object = 0
    try:
        run(**request)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """`python arguments` in this process: -m MODULE, -c CODE or a script."""
    import runpy
    import tempfile

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it asks the environment anew
    if "OMP_NUM_THREADS" in environment and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    kind, *rest = arguments
    if kind == "-m":
        sys.path[0], sys.argv = folder, rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.abspath(kind)), arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])), sys.argv[3:])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))

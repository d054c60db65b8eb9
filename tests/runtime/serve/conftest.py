"""A server of tiny bundles in a thread of this process, and clients of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server needs the extra saten-runtime[serve]")
pytest.importorskip("uvicorn", reason="the server needs the extra saten-runtime[serve]")

Serving = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serving() -> Serving:
    """with serving(bundles, **fields of ServeOptions) as the server's address."""
    from saten_runtime.serve.binding import listen
    from saten_runtime.serve.options import ServeOptions
    from saten_runtime.serve.server import make_server

    @contextmanager
    def run(bundles: list[Path], **options: Any) -> Iterator[str]:
        chosen = ServeOptions(**{"port": 0, "grace_s": 1, **options})
        urls: list[str] = []
        begun = threading.Event()

        def listening(url: str, _: list[str]) -> None:
            urls.append(url)
            begun.set()

        with listen(chosen.host, chosen.port) as socket:
            server = make_server(bundles, chosen, listening=listening)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
            thread.start()
            try:
                assert begun.wait(20)
                yield urls[0]
            finally:
                server.should_exit = True
                thread.join(20)
        assert not thread.is_alive()

    return run


@pytest.fixture(scope="session")
def writer(task_bundle: Callable[..., Path]) -> Path:
    """A decoder whose tokens are words."""
    return task_bundle("text-generation", name="writer")


@pytest.fixture(scope="module")
def url(serving: Serving, tiny: Path, writer: Path) -> Iterator[str]:
    """A server of an embedder, "tiny", and a decoder, "writer"."""
    with serving([tiny, writer]) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    """OpenAI's own."""
    openai = pytest.importorskip("openai", reason="OpenAI's client is not installed (extra saten-edge[test])")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made

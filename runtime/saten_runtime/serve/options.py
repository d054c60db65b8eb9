"""What a server of bundles can be told."""

from __future__ import annotations

from dataclasses import dataclass

from saten_runtime.options import check_ranges, option

__all__ = ["API_KEY_VARIABLE", "ServeOptions"]

API_KEY_VARIABLE = "SATEN_API_KEY"
_MOST_PORTS = 65535


@dataclass(frozen=True)
class ServeOptions:
    """Where to listen, how bundles run, and what one request and all of them together may take.

    Raises:
        UsageError: a number out of its range.
    """

    host: str = option("127.0.0.1", "Address to listen on; any but this machine's own should have a key")
    port: int = option(8080, "Port to listen on; 0 takes any free one", low=0, high=_MOST_PORTS)
    api_key: str | None = option(
        None, f"Key that requests must carry; else the one in the environment's {API_KEY_VARIABLE}, if there is one"
    )
    threads: int = option(1, "Number of threads of each bundle", "--threads", "-t", low=1)
    memory: str = option("fast", "Memory mode: fast or small")
    batch: int = option(32, "Texts per run at most", "--batch", "-b", low=1)
    slots: int = option(1, "Continuations of a decoder at a time; each has a cache of its own", low=1)
    queue: int = option(1024, "Texts or prompts that may wait for a bundle; beyond them the answer is 429", low=1)
    max_tokens: int = option(1024, "Tokens that one continuation may have", low=1)
    max_body: int = option(4_000_000, "Bytes that the body of a request may have", low=1)
    timeout_s: float = option(120.0, "Seconds that an answer may take", "--timeout", low=0.001)
    grace_s: int = option(10, "Seconds that answers under way get when the server ends", "--grace", low=0)

    def __post_init__(self) -> None:
        check_ranges(self)

"""What was done, in the text format that Prometheus reads.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
Labels = tuple[tuple[str, str], ...]


class _Histogram:
    """Counts of values up to each bound, by labels."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self._counts, self._sums = bounds, Counter[tuple[Labels, int]](), Counter[Labels]()

    def see(self, value: float, labels: Labels) -> None:
        self._counts[labels, bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value  # type: ignore[assignment]  # a sum of floats

    def lines(self, name: str) -> Iterator[str]:
        for labels, total in sorted(self._sums.items()):
            seen = 0
            for place, bound in enumerate((*self._bounds, "+Inf")):
                seen += self._counts[labels, place]
                yield _line(f"{name}_bucket", (*labels, ("le", str(bound))), seen)
            yield _line(f"{name}_sum", labels, total)
            yield _line(f"{name}_count", labels, seen)


class Metrics:
    """Counters of one server. Labels are names of routes and of bundles, never what a client makes up."""

    def __init__(self) -> None:
        self._requests = Counter[Labels]()
        self._tokens = Counter[Labels]()
        self._seconds, self._batches = _Histogram(_SECONDS), _Histogram(_TEXTS)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request got its answer."""
        self._requests[("route", route), ("code", str(status))] += 1
        self._seconds.see(seconds, (("route", route),))

    def counted(self, model: str, kind: str, tokens: int) -> None:
        """Tokens were read ("prompt") or made ("completion")."""
        self._tokens[("model", model), ("kind", kind)] += tokens

    def batched(self, model: str, texts: int) -> None:
        """A run had so many texts."""
        self._batches.see(texts, (("model", model),))

    def text(self, waiting: Mapping[str, int], resident_bytes: int) -> str:
        """All of it; waiting: by model."""
        gauges = [((("model", name),), count) for name, count in sorted(waiting.items())]
        parts = [
            (
                "saten_requests_total",
                "counter",
                [_line("saten_requests_total", *item) for item in _sorted(self._requests)],
            ),
            ("saten_request_seconds", "histogram", self._seconds.lines("saten_request_seconds")),
            ("saten_tokens_total", "counter", [_line("saten_tokens_total", *item) for item in _sorted(self._tokens)]),
            ("saten_batch_texts", "histogram", self._batches.lines("saten_batch_texts")),
            ("saten_waiting", "gauge", [_line("saten_waiting", *item) for item in gauges]),
            (
                "process_resident_memory_bytes",
                "gauge",
                [_line("process_resident_memory_bytes", (), resident_bytes)],
            ),
        ]
        lines = [line for name, kind, each in parts for line in (f"# TYPE {name} {kind}", *each)]
        return "\n".join(lines) + "\n"


def _sorted(counts: Counter[Labels]) -> list[tuple[Labels, int]]:
    return sorted(counts.items())


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

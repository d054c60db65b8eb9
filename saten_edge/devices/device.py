"""What a transport has to offer, and the errors of reaching a board."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Device"]


class Device(Protocol):
    """A way to a board, made from its URL.

    url: as the user wrote it. label: short, unique among the devices of one command, and fit for a file
    name. folder: where on the board everything is kept; None is the agent's default. ready: the Python
    there already has the runtime, nothing needs to be deployed.
    """

    @property
    def url(self) -> str:
        """See the class."""

    @property
    def label(self) -> str:
        """See the class."""

    @property
    def folder(self) -> str | None:
        """See the class."""

    @property
    def ready(self) -> bool:
        """See the class."""

    def command(self, bootstrap: str) -> list[str]:
        """The process whose stdin and stdout are those of `bootstrap`, a fixed line for a shell there.

        Raises:
            DeviceError: the program that it takes is not installed here.
        """

    def explain(self, returncode: int | None, last_words: str) -> str:
        """Why the process ended before the agent spoke, in one line with what to do."""

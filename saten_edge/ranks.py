"""Processes that torchrun started together: the first leads, and the others give it their part of every sum."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

from saten_runtime.errors import DeviceError
from saten_runtime.records.plain_text import one_line

__all__ = ["ALONE", "Ranks", "ranks_here"]

Item = TypeVar("Item")
# The others wait as long as the leader decomposes between two sums.
MOST_WAIT = datetime.timedelta(days=7)
_END = -2


class Ranks:
    """The processes of one run, by gloo; all of them have the same input. rank: of this one; 0 leads."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def leads(self) -> bool:
        """Whether this process does all that is not shared."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The part of them that is this process's."""
        return items[self.rank :: self.count]

    def summed(self, tensors: Sequence[Tensor], number: int) -> int:
        """The sum of a number over all processes; that of each tensor is written into it.

        Raises:
            DeviceError: another process was lost.
        """
        if self.count == 1:
            return number
        counted = torch.tensor([number])
        with self._together():
            for tensor in (*tensors, counted):
                torch.distributed.all_reduce(tensor)
        return int(counted)

    def lead(self, number: int) -> None:
        """Tell the others which sum comes next.

        Raises:
            DeviceError: one of them was lost.
        """
        if self.count > 1 and self.leads:
            with self._together():
                torch.distributed.broadcast(torch.tensor([number]), 0)

    def follow(self) -> Iterator[int]:
        """The sums that the leader asks for, until it is done.

        Raises:
            DeviceError: it was lost.
        """
        asked = torch.tensor([0])
        while True:
            with self._together():
                torch.distributed.broadcast(asked, 0)
            if int(asked) == _END:
                return
            yield int(asked)

    def end(self) -> None:
        """Let the others go."""
        self.lead(_END)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as cause:  # gloo has no error of its own for a connection that closed
            raise DeviceError(
                f"process {self.rank} of {self.count} lost another that torchrun started ({one_line(cause, 120)})"
            ) from None


ALONE = Ranks()


@contextlib.contextmanager
def ranks_here() -> Iterator[Ranks]:
    """The processes that torchrun started, in a group while the block runs; one alone without it.

    A process that is in a group already belongs to a program that shares its work itself, and counts as alone.

    Raises:
        DeviceError: the others cannot be reached.
    """
    count, rank = (int(os.environ.get(name, usual)) for name, usual in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if count == 1 or torch.distributed.is_initialized():
        yield ALONE
        return
    try:
        torch.distributed.init_process_group("gloo", timeout=MOST_WAIT)
    except (RuntimeError, ValueError) as cause:
        raise DeviceError(
            f"process {rank} of {count}, as WORLD_SIZE has it, does not reach the others ({one_line(cause, 200)}); "
            "start them with torchrun, or unset WORLD_SIZE"
        ) from None
    ranks, lost = Ranks(rank, count), False
    try:
        yield ranks
    except (DeviceError, KeyboardInterrupt):  # nobody may be left to be told
        lost = True
        raise
    finally:
        if not lost:
            with contextlib.suppress(DeviceError):  # one that failed by itself has said why
                ranks.end()
        torch.distributed.destroy_process_group()

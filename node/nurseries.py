"""Small things that trio leaves to its users: one exception out of a nursery, a shield with an end.

Rule: where a task group can only fail in one way, its caller sees that exception itself and not a group of one.
Cancellation in the group is dropped beside a real error, because the error is why it was cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


@contextmanager
def one_error() -> Iterator[None]:
    """Raise the only real exception of a group in place of the group; leave groups of several alone."""
    try:
        yield
    except BaseExceptionGroup as group:
        real = list(_leaves(group))
        if len(real) == 1:
            raise real[0] from None
        raise


def only_interrupts(group: BaseExceptionGroup[BaseException]) -> bool:
    """True if Ctrl-C is all that happened: a task that was interrupted, and others that were cancelled for it."""
    real = list(_leaves(group))
    return bool(real) and all(isinstance(error, KeyboardInterrupt) for error in real)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        elif not isinstance(error, trio.Cancelled):
            yield error


def shielded(seconds: float) -> trio.CancelScope:
    """A scope that no cancellation from outside reaches, for at most `seconds`: for what must be finished."""
    return trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)

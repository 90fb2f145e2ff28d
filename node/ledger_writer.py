"""The one task that writes the ledger.

Rule: a change is decided against all changes before it, and its result is handed out only after the disk has it.
Changes that queue while the disk works are written together (group commit), so a busy ledger costs one sync a group
and an idle one waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from node.store import Store, StoreError
from protocol.errors import ErrorCode, Refused
from protocol.ledger.state import Draft

if TYPE_CHECKING:
    from trio_typing import TaskStatus

GROUP = 32  # changes written by one sync
QUEUE = 64  # changes that may wait; who brings more waits for room

Result = TypeVar("Result")
Decide = Callable[[Draft], Result]
Written = Callable[[Mapping[bytes, bytes | None]], None]


@dataclass(slots=True, eq=False)
class _Command:
    decide: Decide[Any]
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Hand out an error instead of a result."""
        self.error = error
        self.done.set()


class LedgerWriter:
    """Owns the writing side of a store."""

    def __init__(self, store: Store, written: Written) -> None:
        """`written` hears of every group of changes once it is on the disk."""
        self._store = store
        self._written = written
        self._send, self._receive = trio.open_memory_channel[_Command](QUEUE)

    async def commit(self, decide: Decide[Result]) -> Result:
        """Run `decide` on a draft of the ledger and store what it put there.

        Returns its result, or raises its exception, which leaves no change. Raises `Refused` (INTERNAL) if the
        disk failed or the ledger is closed. A caller that is cancelled here may find its change made all the same.
        """
        command = _Command(decide)
        try:
            await self._send.send(command)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise _closed() from None
        await command.done.wait()
        if command.error is not None:
            raise command.error
        result: Result = command.result
        return result

    async def run(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled. What was not written then is refused, and was never acknowledged."""
        task_status.started()
        try:
            async for first in self._receive:
                with trio.CancelScope(shield=True):  # whoever waits for it hears an answer, even if this ends now
                    await self._write([first, *self._waiting(GROUP - 1)])
        finally:
            for command in self._waiting(QUEUE):
                command.fail(_closed())
            self._receive.close()

    def _waiting(self, most: int) -> list[_Command]:
        commands: list[_Command] = []
        while len(commands) < most:
            try:
                commands.append(self._receive.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        return commands

    async def _write(self, commands: list[_Command]) -> None:
        group = Draft(self._store)
        decided = [command for command in commands if _decided(command, group)]
        if group.puts:
            try:
                await trio.to_thread.run_sync(self._store.write, group.puts)
            except StoreError as error:
                for command in decided:
                    command.fail(Refused(ErrorCode.INTERNAL, str(error)))
                return
            self._written(group.puts)
        for command in decided:
            command.done.set()


def _decided(command: _Command, group: Draft) -> bool:
    """Run one command on top of the group. True if its change joins the group."""
    draft = Draft(group)
    try:
        command.result = command.decide(draft)
    except StoreError as error:
        command.fail(Refused(ErrorCode.INTERNAL, str(error)))
        return False
    except Exception as error:  # whatever it is, it belongs to the caller, not to the writer
        command.fail(error)
        return False
    group.update(draft.puts)
    return True


def _closed() -> Refused:
    return Refused(ErrorCode.INTERNAL, "the ledger is closed")

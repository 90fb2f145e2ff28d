"""Admission: bounded, fair, paid before free."""

from contextlib import AsyncExitStack

import pytest
import trio

from node.scheduler import Scheduler
from protocol.errors import ErrorCode, Refused
from protocol.ids import NodeId

A, B, C = (NodeId(bytes([number]) * 32) for number in (1, 2, 3))


async def test_slots_then_queue_then_refusal() -> None:
    scheduler = Scheduler(slots=1, queue=1)
    async with scheduler.place(A, paid=True) as first, scheduler.place(B, paid=True) as second:
        assert first.admitted and second.position == 1
        with pytest.raises(Refused) as refused:
            async with scheduler.place(C, paid=True):
                pass
        assert refused.value.code is ErrorCode.OVERLOADED and refused.value.retry_after_ms > 0
    assert scheduler.busy == scheduler.queued == 0


async def test_a_freed_slot_wakes_the_next() -> None:
    scheduler = Scheduler(slots=1, queue=4)
    order: list[str] = []

    async def serve(name: str, node: NodeId, paid: bool, started: trio.Event) -> None:
        async with scheduler.place(node, paid=paid) as ticket:
            started.set()
            while not ticket.admitted:
                await scheduler.wait_moved(ticket)
            order.append(name)

    async with trio.open_nursery() as nursery, scheduler.place(A, paid=True):
        for name, node, paid in (("free", B, False), ("paid", C, True)):
            started = trio.Event()
            nursery.start_soon(serve, name, node, paid, started)
            await started.wait()
    assert order == ["paid", "free"]


async def test_a_burst_of_one_requester_does_not_starve_another() -> None:
    scheduler = Scheduler(slots=2, queue=8)
    async with (
        scheduler.place(A, paid=True),
        scheduler.place(A, paid=True) as running,
        scheduler.place(A, paid=True) as third,
        scheduler.place(B, paid=True) as newcomer,
    ):
        assert running.admitted
        assert (newcomer.position, third.position) == (1, 2)


async def test_one_requester_cannot_fill_the_queue() -> None:
    scheduler = Scheduler(slots=1, queue=4)
    async with AsyncExitStack() as places:
        for _ in range(4):  # one runs, three wait
            await places.enter_async_context(scheduler.place(A, paid=True))
        with pytest.raises(Refused, match="share of the queue"):
            await places.enter_async_context(scheduler.place(A, paid=True))
        other = await places.enter_async_context(scheduler.place(B, paid=True))
        assert not other.admitted


async def test_a_waiter_that_gives_up_leaves_no_trace() -> None:
    scheduler = Scheduler(slots=1, queue=4)
    async with scheduler.place(A, paid=True):
        with trio.move_on_after(0):
            async with scheduler.place(B, paid=True) as ticket:
                await scheduler.wait_moved(ticket)
        assert scheduler.queued == 0
    async with scheduler.place(B, paid=True) as ticket:
        assert ticket.admitted


async def test_a_paid_query_finds_room_among_free_ones() -> None:
    scheduler = Scheduler(slots=1, queue=2)
    async with (
        scheduler.place(A, paid=True),
        scheduler.place(B, paid=False) as first,
        scheduler.place(C, paid=False) as last,
        scheduler.place(A, paid=True) as paid,
    ):
        assert (paid.position, first.position) == (1, 2)
        with pytest.raises(Refused) as refused, trio.fail_after(1):
            await scheduler.wait_moved(last)
        assert refused.value.code is ErrorCode.OVERLOADED and refused.value.retry_after_ms > 0
        assert scheduler.queued == 2
    assert scheduler.busy == scheduler.queued == 0


async def test_paid_queries_do_not_push_out_each_other() -> None:
    scheduler = Scheduler(slots=1, queue=1)
    async with scheduler.place(A, paid=True), scheduler.place(B, paid=True):
        with pytest.raises(Refused, match="the queue is full"):
            async with scheduler.place(C, paid=True):
                pass


async def test_a_turn_that_comes_too_late_is_refused_early() -> None:
    now = 0.0
    scheduler = Scheduler(slots=1, queue=4, clock=lambda: now)
    async with scheduler.place(A, paid=True):
        with pytest.raises(Refused, match="when its time is up") as refused:
            async with scheduler.place(B, paid=True, time_left_ms=1_000):
                pass
        assert refused.value.code is ErrorCode.OVERLOADED and refused.value.retry_after_ms >= 5_000
        assert scheduler.queued == 0


async def test_the_estimate_counts_answers_and_not_the_waiting() -> None:
    now = 0.0
    scheduler = Scheduler(slots=1, queue=4, clock=lambda: now)
    for _ in range(40):
        async with scheduler.place(A, paid=True):
            async with scheduler.place(B, paid=True) as waiting:
                now += 100.0  # nobody's answer: B leaves before it was admitted
                assert not waiting.admitted
            now -= 99.0
    assert scheduler.wait_estimate_ms(1) == 1_000


async def test_a_queue_behind_long_answers_refuses_early_and_says_when_to_come_back() -> None:
    now = 0.0
    scheduler = Scheduler(slots=2, queue=8, clock=lambda: now)
    async with scheduler.place(A, paid=True), scheduler.place(B, paid=True):
        assert scheduler.wait_estimate_ms(2) == 5_000  # nothing is known yet
        now += 70.0
        assert scheduler.wait_estimate_ms(2) == 70_000
        async with scheduler.place(C, paid=True, time_left_ms=60_000):
            with pytest.raises(Refused, match="turn in 70 s") as refused:
                async with scheduler.place(A, paid=True, time_left_ms=60_000):
                    pass
        assert refused.value.code is ErrorCode.OVERLOADED and refused.value.retry_after_ms == 70_000


async def test_one_long_answer_among_many_slots_does_not_speak_for_all() -> None:
    now = 0.0
    scheduler = Scheduler(slots=4, queue=8, clock=lambda: now)
    async with AsyncExitStack() as places:
        await places.enter_async_context(scheduler.place(A, paid=True))
        now += 85.0
        for _ in range(3):
            await places.enter_async_context(scheduler.place(B, paid=True))
        assert scheduler.wait_estimate_ms(4) == (85_000 + 3 * 5_000) / 4


async def test_answers_that_were_cut_short_do_not_lower_the_estimate() -> None:
    now = 0.0
    scheduler = Scheduler(slots=1, queue=4, clock=lambda: now)
    for _ in range(20):
        async with scheduler.place(A, paid=True) as ticket:  # the requester said that it does not want it any more
            now += 0.1
            ticket.cut_short = True
        with trio.CancelScope() as scope:
            async with scheduler.place(A, paid=True):
                now += 0.1
                scope.cancel()
                await trio.lowlevel.checkpoint()
        with pytest.raises(ZeroDivisionError):
            async with scheduler.place(A, paid=True):
                now += 0.1
                raise ZeroDivisionError
    assert scheduler.wait_estimate_ms(1) == 5_000


async def test_a_query_that_is_not_ready_lets_others_pass() -> None:
    scheduler = Scheduler(slots=1, queue=4)
    async with scheduler.place(A, paid=True, ready=False) as uploading:
        assert uploading.position == 1 and scheduler.busy == 0
        async with scheduler.place(B, paid=False) as quick:
            assert quick.admitted
            scheduler.make_ready(uploading)
            assert not uploading.admitted
        assert uploading.admitted


async def test_behind_a_closed_gate_queries_keep_their_places() -> None:
    scheduler = Scheduler(slots=2, queue=4)
    scheduler.close()
    async with scheduler.place(A, paid=True) as first, scheduler.place(B, paid=True) as second:
        assert (first.position, second.position) == (1, 2)
        scheduler.open()
        assert first.admitted and second.admitted
        scheduler.close()
        async with scheduler.place(C, paid=True) as third:
            assert not third.admitted and scheduler.busy == 2
            scheduler.turn_away("the model cannot be loaded", 7_000, ErrorCode.ENGINE_FAILED)
            with pytest.raises(Refused, match="cannot be loaded") as refused:
                await scheduler.wait_moved(third)
            assert refused.value.code is ErrorCode.ENGINE_FAILED and refused.value.retry_after_ms == 7_000
    assert scheduler.busy == scheduler.queued == 0

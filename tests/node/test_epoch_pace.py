"""A bad coordinator that begins round after round cannot keep the others from ending the epoch."""

from __future__ import annotations

import trio
import trio.testing

from node import epoch_change
from protocol.errors import ErrorCode
from protocol.messages import Join, Joined, Rejected
from tests.node.witnesses import begun, world_of


async def test_a_coordinators_rounds_come_ever_more_slowly(mock_clock: trio.testing.MockClock) -> None:
    async with world_of(4) as world:
        await begun(world)
        world.clock.now += world.federation.genesis.epoch_length_ms
        bad, other = (world.witnesses[index].node for index in (0, 1))
        asked = world.books[world.witnesses[2].node]
        world.away |= {one.node for one in world.witnesses if one is not world.witnesses[2]}  # nobody ends the epoch
        joined, number, end = 0, 0, trio.current_time() + 60
        while trio.current_time() < end:
            answer = await asked.answer(bad, Join(0, number))
            if isinstance(answer, Joined):
                joined, number = joined + 1, number + 4
            else:
                assert isinstance(answer, Rejected) and answer.code == ErrorCode.OVERLOADED
                mock_clock.jump(epoch_change.ROUND_SECONDS)  # time passes here alone
        assert joined == 5  # after 0, 3, 9, 21 and 45 seconds
        assert isinstance(await asked.answer(other, Join(0, number + 1)), Joined)  # the others' are not held up

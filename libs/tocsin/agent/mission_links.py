"""The channels along a mission's topology, opened before anybody needs them.

Of each link the agent with the lesser name begins, so nobody begins one twice; its host tries again, with pauses that
grow, for as long as the mission runs, and says how far it is. A link that cannot be made fails nothing: an agent's own
``channel(peer)`` would fail in the same way. What was opened here is closed when the mission ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from itertools import chain, repeat

from tocsin.agent.channels.lobby import Lobby
from tocsin.agent.mesh import Pair, links
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.missions import MAX_FAILED_LINKS, FailedLink, LinkReport, Topology

AT_ONCE = 8
"""Handshakes of one host for missions at a time: they shall not hold up what else the host does."""
OPEN_S = 5.0
RETRY_S = (0.5, 2.0, 5.0, 15.0)
"""Pauses before a link is tried again; the last one repeats."""
SAY_S = 0.5
"""How often it is said how far the host is, while that changes."""
OPENING = "opening"


class MissionLinks:
    """The links of missions that one host's agents begin."""

    def __init__(self, lobby: Lobby, mine: Collection[str]) -> None:
        self._lobby = lobby
        self._mine = frozenset(mine)
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._held: Counter[Pair] = Counter()
        """Links that were opened here, and for how many missions."""

    async def hold(self, topology: Topology, say: Callable[[LinkReport], None]) -> None:
        """Open what this host's agents begin, and keep it until cancelled."""
        pending = {pair: OPENING for pair in links(topology) if pair[0] in self._mine}
        wanted, opened, news = len(pending), set[Pair](), asyncio.Event()
        if not wanted:
            return

        async def one(pair: Pair) -> None:
            for pause_s in chain(RETRY_S, repeat(RETRY_S[-1])):
                async with self._turn:
                    before = self._is_open(pair)
                    try:
                        await self._lobby.channel(*pair, timeout_s=OPEN_S)
                    except TocsinError as error:
                        pending[pair] = error.reason
                    else:
                        if not before or self._held[pair]:
                            self._held[pair] += 1
                            opened.add(pair)
                        del pending[pair]
                news.set()
                if pair not in pending:
                    return
                await asyncio.sleep(pause_s)

        try:
            async with asyncio.TaskGroup() as tries:
                for pair in list(pending):
                    tries.create_task(one(pair))
                while pending:
                    await news.wait()
                    news.clear()
                    say(_report(wanted, pending))
                    await asyncio.sleep(SAY_S)
            say(_report(wanted, pending))
            await asyncio.Event().wait()
        finally:
            await self._close(opened)

    def _is_open(self, pair: Pair) -> bool:
        link = self._lobby.desk(pair[0]).book.find(pair[1])
        return link is not None and link.current is not None

    async def _close(self, opened: Collection[Pair]) -> None:
        for pair in opened:
            self._held[pair] -= 1
            if self._held[pair] > 0:
                continue
            del self._held[pair]
            desk = self._lobby.desk(pair[0])
            if (link := desk.book.find(pair[1])) is not None:
                await desk.close(link.peer)


def _report(wanted: int, pending: dict[Pair, str]) -> LinkReport:
    failed = [(pair, why) for pair, why in pending.items() if why != OPENING]
    return LinkReport(
        wanted=wanted,
        open=wanted - len(pending),
        failed=tuple(
            FailedLink(agent=pair[0], peer=pair[1], reason=why) for pair, why in failed[:MAX_FAILED_LINKS]
        ),
    )

"""nftables: this machine's own packet filter, in a table of its own.

Table ``inet tocsin`` has a set for each action and family, and drops what comes from or goes to an address in one of
them, whether this machine is the end (hooks input and output) or a router in between (hook forward). Every element has
the command's duration as its timeout: the kernel ends what a guardian that died does not end. What other tables
accept is dropped all the same, for a packet is lost once any base chain drops it (nft(8), "verdict statement").

Each command is one transaction, by ``nft -j -f -`` (libnftables-json(5)): all of it holds, or nothing. It makes the
table where it is missing, so a flushed rule set is mended by the next command. Needs nft and CAP_NET_ADMIN.

Does not end connections of other machines that do not pass here, and filters no traffic of link-layer bridges.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv6Address

from tocsin.agent.actuators import Carried, VerifiedOrder
from tocsin.agent.protected import parse_address
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.response import Action, ActuationOutcome, Command

TABLE = "tocsin"
HOOKS = ("input", "forward", "output")
PRIORITY = -10
"""Just before the usual filters (priority 0)."""
TIMEOUT_S = 10.0
MAX_OUTPUT = 16 * 1024 * 1024
SETS = tuple((f"{action.value}{version}", version) for action in Action for version in (4, 6))
"""Name and IP version of every set."""

Json = dict[str, object]


def set_of(command: Command) -> tuple[str, str]:
    """Return the set that a command's address belongs to, and the address as nft writes it."""
    address = parse_address(command.address)
    return f"{command.action.value}{6 if isinstance(address, IPv6Address) else 4}", str(address)


def layout() -> list[Json]:
    """Return the commands that make the table; they change nothing in one that is complete."""
    of = {"family": "inet", "table": TABLE}
    made: list[Json] = [{"add": {"table": {"family": "inet", "name": TABLE}}}]
    made += [
        {"add": {"set": of | {"name": name, "type": f"ipv{version}_addr", "flags": ["timeout"]}}}
        for name, version in SETS
    ]
    for hook in HOOKS:
        chain = of | {"name": hook, "type": "filter", "hook": hook, "prio": PRIORITY, "policy": "accept"}
        made += [{"add": {"chain": chain}}, {"flush": {"chain": of | {"name": hook}}}]
        made += [
            {"add": {"rule": of | {"chain": hook, "expr": _drop(name, version, field)}}}
            for name, version in SETS
            for field in ("saddr", "daddr")
        ]
    return made


def _drop(name: str, version: int, field: str) -> list[Json]:
    protocol = "ip" if version == 4 else "ip6"
    left = {"payload": {"protocol": protocol, "field": field}}
    return [{"match": {"op": "==", "left": left, "right": f"@{name}"}}, {"drop": None}]


def adding(order: VerifiedOrder) -> Json:
    """Return the transaction that puts an order in force.

    The element is added, deleted and added again: a plain addition leaves the timeout of one that is there, a plain
    deletion fails where there is none.
    """
    name, address = set_of(order.command)
    plain: Json = {"add": {"element": _element(name, address)}}
    removed: Json = {"delete": {"element": _element(name, address)}}
    timed = {
        "elem": {"val": address, "timeout": order.command.duration_s, "comment": f"tocsin {order.command_id}"}
    }
    added: Json = {"add": {"element": _element(name, timed)}}
    return _transaction([*layout(), plain, removed, added])


def removing(order: VerifiedOrder) -> Json:
    """Return the transaction that ends an order, whether it is in force or not."""
    name, address = set_of(order.command)
    element = _element(name, address)
    return _transaction([*layout(), {"add": {"element": element}}, {"delete": {"element": element}}])


def _element(name: str, value: object) -> Json:
    return {"family": "inet", "table": TABLE, "name": name, "elem": [value]}


def _transaction(commands: Sequence[Json]) -> Json:
    return {"nftables": [{"metainfo": {"json_schema_version": 1}}, *commands]}


def ids_of(listing: bytes) -> frozenset[str]:
    """Return the ids of the orders in a listing of the table.

    Raises:
        InvalidInputError: ``bad_listing``: no listing.
    """
    found: set[str] = set()
    try:
        for item in json.loads(listing)["nftables"]:
            for one in item.get("set", {}).get("elem", ()):
                comment = one["elem"].get("comment", "") if isinstance(one, Mapping) else ""
                kind, _, command_id = str(comment).partition(" ")
                if kind == TABLE:
                    found.add(command_id)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(f"no listing of nft: {error!r}"[:200], reason="bad_listing") from error
    return frozenset(found)


class NftablesActuator:
    """Fills and empties the sets.

    Args:
        nft: The command, e.g. with what enters another network namespace before it.
    """

    name = "nftables"
    acts = True
    by_address = True

    def __init__(self, nft: Sequence[str] = ("nft",), *, timeout_s: float = TIMEOUT_S) -> None:
        self._nft = tuple(nft)
        self._timeout_s = timeout_s

    async def apply(self, order: VerifiedOrder) -> Carried:
        """Add the address to its set.

        Raises:
            UnavailableError: ``nft_failed``, ``no_nft``, ``nft_timed_out``.
            InvalidInputError: ``bad_address``.
        """
        await self._run(("-j", "-f", "-"), json.dumps(adding(order)).encode())
        name, address = set_of(order.command)
        return Carried(
            ActuationOutcome.DONE, f"dropping {address} for {order.command.duration_s} s (inet {TABLE} {name})"
        )

    async def undo(self, order: VerifiedOrder) -> Carried:
        """Remove the address from its set; raises as :meth:`apply`."""
        await self._run(("-j", "-f", "-"), json.dumps(removing(order)).encode())
        name, address = set_of(order.command)
        return Carried(ActuationOutcome.DONE, f"no longer dropping {address} (inet {TABLE} {name})")

    async def query(self) -> frozenset[str] | None:
        """Return the ids of the elements in the sets."""
        await self._run(("-j", "-f", "-"), json.dumps(_transaction(layout())).encode())
        return ids_of(await self._run(("-j", "list", "table", "inet", TABLE), b""))

    async def _run(self, arguments: Sequence[str], data: bytes) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._nft,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_OUTPUT,
            )
        except OSError as error:
            raise UnavailableError(
                f"{self._nft[0]} does not run: {error.strerror}", reason="no_nft", advice="install nftables"
            ) from error
        try:
            async with asyncio.timeout(self._timeout_s):
                out, err = await process.communicate(data)
        except TimeoutError as error:
            raise UnavailableError(
                f"nft took more than {self._timeout_s:g} s", reason="nft_timed_out"
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            said = " ".join(err.decode(errors="replace").split())[:200]
            raise UnavailableError(f"nft: {said}", reason="nft_failed", advice="nft needs CAP_NET_ADMIN")
        return out

"""The system's status is ok only if every service answered."""

from __future__ import annotations

from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import Pong
from tocsin.gateway.status import system_status

PONG = Pong(process="service.router.0", version="1.0", signature_backend="openssl", name="0")


def test_all_ready_is_ok() -> None:
    found = system_status({ServiceName.ROUTER: PONG, ServiceName.FLEET: PONG}, version="1.0")
    assert found.status == "ok"
    assert [one.service for one in found.services] == [ServiceName.FLEET, ServiceName.ROUTER]
    assert found.services[1].process == "service.router.0"


def test_one_that_does_not_answer_is_degraded_and_says_why() -> None:
    gone = UnavailableError("nobody", reason="no_answer")
    found = system_status({ServiceName.ROUTER: PONG, ServiceName.FLEET: gone}, version="1.0")
    assert found.status == "degraded"
    assert (found.services[0].ready, found.services[0].reason) == (False, "no_answer")
    assert found.services[1].ready

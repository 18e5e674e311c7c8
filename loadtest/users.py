"""locust's users for the wires. Importing this imports locust, which patches the process for gevent."""

from __future__ import annotations

from typing import Any, ClassVar

from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from kservekit.loadtest.recorder import Outcome
from kservekit.loadtest.session import Listener, Session, Wire
from kservekit.loadtest.target import Target


class RequestFailed(Exception):
    """What locust's own page shows of a request without an answer."""


class OpenLoopUser(User):
    """Sends the session's load, all of it, and is done. One is enough: the greenlets of its requests are its own."""

    abstract = True
    fixed_count = 1
    session: ClassVar[Session]

    @task
    def dispatch(self) -> None:
        keep_schedule(self.session)
        raise StopUser


class ClosedLoopUser(User):
    """A request, its answer, a pause, and again: what waits behind a slow answer is never sent."""

    abstract = True
    session: ClassVar[Session]

    def wait_time(self) -> float:
        return getattr(self.session.load, "think_s", 0.0)

    @task
    def request(self) -> None:
        self.session.request()


def keep_schedule(session: Session) -> None:
    """All of an open loop's load; what goes wrong is kept, because locust would log it and begin anew."""
    try:
        session.dispatch()
    except Exception as error:
        session.failure = error
    session.over.set()


def user_class(session: Session, *, open_loop: bool) -> type[User]:
    base = OpenLoopUser if open_loop else ClosedLoopUser
    return type(base.__name__, (base,), {"session": session, "abstract": False, "host": session.wire.target.url})


def connect(target: Target) -> Wire:
    """Nothing is sent yet."""
    if target.wire == "v2-grpc":
        from kservekit.loadtest.grpc_wire import GrpcWire

        return GrpcWire(target)
    from kservekit.loadtest.http_wire import HttpWire

    return HttpWire(target)


def for_locusts_page(environment: Environment, target: Target) -> Listener:
    """Tells locust of each request, by the latency from its intended start."""
    fire: Any = environment.events.request.fire

    def listen(name: str, outcome: Outcome, latency_s: float) -> None:
        fire(
            request_type=target.wire,
            name=name,
            response_time=latency_s * 1000,
            response_length=outcome.received,
            exception=RequestFailed(outcome.error) if outcome.error else None,
            context={},
            url=target.url,
            response=None,
        )

    return listen

"""For locust itself: `locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --model photo --rate 100 -t 30s`.

With --rate an open loop, else a closed one of locust's users. The flags of `kservekit loadtest` are among locust's
own, on its page too, and locust's latencies are those from the intended start. Its exit code is the verdict's. Of
several machines (--master, --worker) each sends its part of one schedule, and the master judges what all have counted.
"""

from __future__ import annotations

import math
from typing import Any

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from kservekit.errors import KServeKitError
from kservekit.loadtest import options
from kservekit.loadtest.roles import Alone, Master, Worker, resolved
from kservekit.loadtest.session import Session
from kservekit.loadtest.shapes import Closed

hooks: Any = events


class KServeUser(User):
    """A user of a closed loop; an open loop's schedule is kept without."""

    session: Session | None = None

    def wait_time(self) -> float:
        return getattr(self.session and self.session.load, "think_s", 0.0)

    @task
    def request(self) -> None:
        session = self.session
        if session is None or session.stopping or not isinstance(session.load, Closed):
            raise StopUser
        session.request()


def _put(session: Session | None) -> None:
    KServeUser.session = session


def _add_flags(parser: Any) -> None:
    options.add_flags(parser)
    group = parser.add_argument_group("kservekit")
    group.add_argument("--load-profile", metavar="PROFILE", help="a file of these settings, TOML or YAML")
    group.add_argument("--run-json", metavar="FILE", help="write the run and its verdict")
    group.add_argument("--run-html", metavar="FILE", help="write kservekit's report")


def _take_a_role(environment: Environment, runner: Any, **_: Any) -> None:
    # Its time stands still while modules are imported, and locust's -t would be over by as much too early.
    gevent.get_hub().loop.update_now()
    if isinstance(runner, WorkerRunner):
        Worker(environment, runner, _put)
        return
    role = Master(environment, runner) if isinstance(runner, MasterRunner) else Alone(environment, _put)
    _take_users_from_the_profile(environment)
    hooks.test_start.add_listener(lambda **_: role.start())
    hooks.test_stopping.add_listener(lambda **_: role.stopping())
    hooks.test_stop.add_listener(lambda **_: role.stopped())
    hooks.quitting.add_listener(lambda **_: role.quitting())


def _take_users_from_the_profile(environment: Environment) -> None:
    """A profile's closed loop has its users and its length from there, where locust's flags do not say them."""
    given: Any = environment.parsed_options
    if not given.load_profile:
        return
    try:
        found = resolved(options.from_locusts_page(given), environment.host)
    except KServeKitError:
        return  # which is said when the run is to start
    if not found.open_loop:
        given.num_users = given.num_users or found.users
        given.spawn_rate = given.spawn_rate or found.users
        if math.isfinite(found.duration_s):
            given.run_time = given.run_time or found.duration_s


hooks.init_command_line_parser.add_listener(_add_flags)
hooks.init.add_listener(_take_a_role)

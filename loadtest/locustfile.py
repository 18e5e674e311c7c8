"""For locust itself: `locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --model photo --rate 100 -t 30s`.

With --rate an open loop, else a closed one of locust's users. The flags of `kservekit loadtest` are among locust's
own, on its page too, and locust's latencies are those from the intended start. Its exit code is the verdict's. Each
worker of a distributed run sends the whole --rate and judges its own part alone: experimental, tested is one process.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner

from kservekit.errors import CannotStart, KServeKitError
from kservekit.loadtest import command, generator, options, report, table, users, verdict
from kservekit.loadtest import run as runs
from kservekit.loadtest.session import Closed, Session
from kservekit.loadtest.slo import Slo

log = logging.getLogger("kservekit.loadtest")


class KServeUser(User):
    """A user of a closed loop, or the one that keeps an open loop's schedule."""

    session: Session | None = None
    slo = Slo()
    is_dispatched = False

    def wait_time(self) -> float:
        return getattr(self.session and self.session.load, "think_s", 0.0)

    @task
    def load(self) -> None:
        session, kind = self.session, type(self)
        if session is None or kind.is_dispatched:
            raise StopUser
        if isinstance(session.load, Closed):
            session.request()
            return
        kind.is_dispatched = True
        users.keep_schedule(session)
        runner: Any = self.environment.runner
        # Not from here: it waits for this user to end.
        gevent.spawn(runner.quit if _is_headless(self.environment) else runner.stop)
        raise StopUser


def _add_flags(parser: Any) -> None:
    options.add_flags(parser)
    group = parser.add_argument_group("kservekit")
    group.add_argument("--load-profile", metavar="PROFILE", help="a file of these settings, TOML or YAML")
    group.add_argument("--run-json", metavar="FILE", help="write the run and its verdict")
    group.add_argument("--run-html", metavar="FILE", help="write kservekit's report")


def _begin(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, MasterRunner):
        return  # its workers send
    KServeUser.session, KServeUser.is_dispatched = None, False
    environment.process_exit_code = command.NO_VERDICT  # locust may stop before there is more to say
    given: Any = options.from_locusts_page(environment.parsed_options)  # type: ignore[arg-type]
    runner: Any = environment.runner
    try:
        found = options.resolve(
            given,
            url=environment.host or None,
            users=given.num_users or 1,
            duration_s=given.run_time or None,
            profile=Path(given.load_profile) if given.load_profile else None,
        )
        wire, payloads = generator.prepared(found)
    except KServeKitError as error:
        log.error("%s", error)
        environment.process_exit_code = command.USAGE if isinstance(error, CannotStart) else command.NO_TARGET
        gevent.spawn(runner.quit if _is_headless(environment) else runner.stop)
        return
    environment.stop_timeout = environment.stop_timeout or found.target.timeout_s
    KServeUser.slo = found.slo
    KServeUser.session = Session(
        wire,
        payloads,
        found.load() if found.open_loop else Closed(found.users, math.inf, found.think_s),
        good_ms=found.slo.goodput_ms,
        max_in_flight=found.max_in_flight,
        listener=users.for_locusts_page(environment, found.target),
    )


def _stop(**_: Any) -> None:
    if KServeUser.session is not None:
        KServeUser.session.stopping = True
        KServeUser.session.close_time()


def _end(environment: Environment, **_: Any) -> None:
    session = KServeUser.session
    if session is None:  # told before: locust says it once for the run and once for its own end
        return
    KServeUser.session = None
    run = session.result()
    found = verdict.judge(run, KServeUser.slo)
    run.verdict = found.as_dict()
    session.wire.close()
    print(table.summary(run, found), flush=True)  # noqa: T201
    environment.process_exit_code = found.exit_code
    given: Any = environment.parsed_options
    if given.run_json:
        runs.save(run, Path(given.run_json))
    if given.run_html:
        runs.write(Path(given.run_html), report.html(run, found))


def _is_headless(environment: Environment) -> bool:
    return bool(getattr(environment.parsed_options, "headless", False))


hooks: Any = events
hooks.init_command_line_parser.add_listener(_add_flags)
hooks.test_start.add_listener(_begin)
hooks.test_stopping.add_listener(_stop)
hooks.test_stop.add_listener(_end)

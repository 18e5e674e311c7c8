"""What a process of locust is in a run: alone, the master of several machines, or one of its workers.

locust's own messages start and stop users. Beside them go these, so that nothing is sent before every worker is ready,
and nothing is judged before each has said what it counted:

    master to worker    prepare    its part of the load, and all flags
    worker to master    prepared   or why it cannot
    master to worker    begin
    master to worker    finish     where the run is stopped from outside
    worker to master    counted    all of it
"""

from __future__ import annotations

import argparse
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from kservekit.errors import CannotStart, KServeKitError
from kservekit.loadtest import command, generator, options, report, table, users, verdict
from kservekit.loadtest import run as runs
from kservekit.loadtest.options import Options
from kservekit.loadtest.publish import Publisher
from kservekit.loadtest.session import NAP_S, Session
from kservekit.loadtest.shapes import Closed, Load
from kservekit.loadtest.share import Share, run_of
from kservekit.loadtest.slo import Slo
from kservekit.loadtest.triton_statistics import TritonStatistics

log = logging.getLogger("kservekit.loadtest")

PREPARE, PREPARED, BEGIN, FINISH, COUNTED = (
    f"kservekit_{name}" for name in ("prepare", "prepared", "begin", "finish", "counted")
)

Put = Callable[[Session | None], None]
"""Hands the session to locust's users."""


class Judge(ABC):
    """Who ends a run, and says what came of it. locust's -t and a schedule may be over at the same moment: whichever is
    first is not cut off by the other before there is a verdict."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self._is_ending = False
        self._told = Event()

    def start(self) -> None:
        self._is_ending = False
        self._told.clear()
        self.environment.process_exit_code = command.NO_VERDICT  # locust may stop before there is more to say
        try:
            self.prepare()
        except KServeKitError as error:
            log.error("%s", error)
            self.environment.process_exit_code = _exit_code(error)
            gevent.spawn(self.end)

    def stopping(self) -> None:
        self._is_ending = True
        self.finish()

    def stopped(self) -> None:
        try:
            self.conclude()
        finally:
            self._told.set()

    def quitting(self) -> None:
        if self._is_ending:
            self._told.wait()

    def end(self) -> None:
        """Not from one of locust's own events, which it waits for."""
        if not self._is_ending:
            runner: Any = self.environment.runner
            headless = getattr(self.environment.parsed_options, "headless", False)
            (runner.quit if headless else runner.stop)()

    @abstractmethod
    def prepare(self) -> None:
        """Starts the run; a KServeKitError says why it cannot."""

    @abstractmethod
    def finish(self) -> None:
        """Returns when all that was sent has been answered."""

    @abstractmethod
    def conclude(self) -> None: ...


class Alone(Judge):
    """The only process: it sends, and it judges."""

    def __init__(self, environment: Environment, put: Put) -> None:
        super().__init__(environment)
        self.put = put
        self.session: Session | None = None
        self.publisher: Publisher | None = None
        self.triton: TritonStatistics | None = None
        self.slo = Slo()

    def prepare(self) -> None:
        self.session = None
        self.put(None)
        given = options.from_locusts_page(self.environment.parsed_options)  # type: ignore[arg-type]
        found = resolved(given, self.environment.host)
        self.publisher = self.publisher or Publisher(found)
        self.triton = _triton(found)
        self.session = _session(self.environment, found)
        self.slo = found.slo
        self.publisher.session = self.session
        self.session.begin()
        self.put(self.session)
        if isinstance(self.session.load, Load):
            gevent.spawn(self._keep_schedule, self.session)

    def finish(self) -> None:
        if self.session is not None:
            self.session.finish()

    def conclude(self) -> None:
        session, self.session = self.session, None
        if session is None:  # told before: locust says it once for the run and once for its own end
            return
        session.wire.close()
        if self.publisher is not None:
            self.publisher.tell()
        if session.failure is not None:
            log.error("the load generator failed: %r", session.failure)
            return
        tell(self.environment, session.result(), self.slo, self.triton)

    def _keep_schedule(self, session: Session) -> None:
        users.keep_schedule(session)
        self.end()


class Master(Judge):
    """Sends nothing: hands out parts of the load, and judges what its workers counted, all of it together."""

    def __init__(self, environment: Environment, runner: MasterRunner) -> None:
        super().__init__(environment)
        self.runner = runner
        self.options: Options | None = None
        self.load: Load | Closed | None = None
        self.triton: TritonStatistics | None = None
        self.run = 0
        self.workers: list[str] = []
        self.prepared: dict[str, Mapping[str, Any]] = {}
        self.counted: dict[str, Mapping[str, Any]] = {}
        runner.register_message(PREPARED, self._hear(self.prepared))
        runner.register_message(COUNTED, self._hear(self.counted))

    def prepare(self) -> None:
        """Returns when all workers have begun, and locust starts users thereafter."""
        environment, runner = self.environment, self.runner
        self.options = None
        given = options.from_locusts_page(environment.parsed_options)  # type: ignore[arg-type]
        found = resolved(given, environment.host)
        self.triton = _triton(found)
        self.load = found.load() if found.open_loop else Closed(runner.target_user_count, math.inf, found.think_s)
        self.workers = [client.id for client in (*runner.clients.ready, *runner.clients.running)]
        self.run += 1
        self.prepared.clear()
        self.counted.clear()
        for index, worker in enumerate(self.workers):
            part = {"index": index, "of": len(self.workers), "host": environment.host, "flags": vars(given)}
            runner.send_message(PREPARE, {"run": self.run, **part}, client_id=worker)
        self._wait_for(self.prepared)
        for worker in self.workers:
            said = self.prepared.get(worker, {"error": "lost before the run", "exit_code": command.NO_VERDICT})
            if said["error"]:
                log.error("worker %s: %s", worker, said["error"])
                environment.process_exit_code = said["exit_code"]
                gevent.spawn(self.end)
                return
        self.options = found
        for worker in self.workers:
            runner.send_message(BEGIN, client_id=worker)
        if isinstance(self.load, Load):
            gevent.spawn(self._watch)

    def finish(self) -> None:
        if self.options is None:
            return
        for worker in self.workers:
            if worker not in self.counted:
                self.runner.send_message(FINISH, client_id=worker)
        self._wait_for(self.counted)

    def conclude(self) -> None:
        found, self.options = self.options, None
        if found is None or self.load is None:
            return
        lost = []
        shares = []
        for worker in self.workers:
            said = self.counted.get(worker)
            if said is None:
                lost.append(worker)
            elif said["failure"]:
                lost.append(f"{worker} ({said['failure']})")
            else:
                shares.append(Share.from_data(said["share"]))
        if not shares:
            log.error("no data: all workers were lost, and with them what they counted: %s", ", ".join(lost))
            return
        run = run_of(shares, found.target, self.load, found.max_in_flight, lost=lost)
        tell(self.environment, run, found.slo, self.triton)

    def _watch(self) -> None:
        """An open loop is over when its parts are."""
        self._wait_for(self.counted)
        self.end()

    def _hear(self, said: dict[str, Mapping[str, Any]]) -> Callable[..., None]:
        def hear(msg: Any, **_: Any) -> None:
            if msg.data["run"] == self.run:  # a worker that was lost may come back with what it has of the one before
                said[msg.node_id] = msg.data

        return hear

    def _wait_for(self, said: Mapping[str, Any]) -> None:
        """Until all have said it, but for those that are lost."""
        while any(worker not in said and not self._is_lost(worker) for worker in self.workers):
            gevent.sleep(NAP_S)

    def _is_lost(self, worker: str) -> bool:
        client = self.runner.clients.get(worker)
        return client is None or client.state == STATE_MISSING


class Worker:
    """Sends its part of the load, and says what it counted."""

    def __init__(self, environment: Environment, runner: WorkerRunner, put: Put) -> None:
        self.environment, self.runner, self.put = environment, runner, put
        self.session: Session | None = None
        self.publisher: Publisher | None = None
        self.run = 0
        environment.process_exit_code = 0  # the verdict is the master's
        runner.register_message(PREPARE, self._prepare, concurrent=True)
        runner.register_message(BEGIN, self._begin, concurrent=True)
        runner.register_message(FINISH, self._finish, concurrent=True)

    def _prepare(self, msg: Any, **_: Any) -> None:
        part = msg.data
        self.run = part["run"]
        self.put(None)
        error, exit_code = "", 0
        try:
            found = resolved(argparse.Namespace(**part["flags"]), part["host"])
            self.publisher = self.publisher or Publisher(found)
            self.session = _session(self.environment, found, (part["index"], part["of"]))
            self.publisher.session = self.session
        except KServeKitError as refused:
            error, exit_code = str(refused), _exit_code(refused)
        except Exception as failure:  # the master waits for a word
            log.exception("cannot prepare")
            error, exit_code = repr(failure), command.NO_VERDICT
        self.runner.send_message(PREPARED, {"run": self.run, "error": error, "exit_code": exit_code})

    def _begin(self, **_: Any) -> None:
        session = self.session
        if session is None:
            return
        session.begin()
        self.put(session)
        index, of = session.part
        log.info("part %d of %d begins", index + 1, of)
        if isinstance(session.load, Load):
            users.keep_schedule(session)
            self._say_what_was_counted()

    def _finish(self, **_: Any) -> None:
        if self.session is not None:
            self.session.finish()
            self._say_what_was_counted()

    def _say_what_was_counted(self) -> None:
        session, self.session = self.session, None
        if session is None:  # said before: the schedule ended as the run was stopped
            return
        failure = "" if session.failure is None else repr(session.failure)
        counted = {"run": self.run, "share": session.share().as_data(), "failure": failure}
        session.wire.close()
        try:
            if self.publisher is not None:
                self.publisher.tell()
        finally:
            self.runner.send_message(COUNTED, counted)


def resolved(given: argparse.Namespace, host: str | None) -> Options:
    return options.resolve(
        given,
        url=host or None,
        users=given.num_users or None,
        duration_s=given.run_time or None,
        profile=Path(given.load_profile) if given.load_profile else None,
    )


def _session(environment: Environment, found: Options, part: tuple[int, int] = (0, 1)) -> Session:
    """Of a target that is there."""
    wire, payloads = generator.prepared(found)
    return Session(
        wire,
        payloads,
        found.load() if found.open_loop else Closed(found.users, math.inf, found.think_s),
        good_ms=found.slo.goodput_ms,
        max_in_flight=math.ceil(found.max_in_flight / part[1]),
        trace_share=found.trace_share,
        part=part,
        listener=users.for_locusts_page(environment, found.target),
    )


def _triton(found: Options) -> TritonStatistics | None:
    return TritonStatistics(found.triton, found.target.model) if found.triton else None


def tell(environment: Environment, run: runs.Run, slo: Slo, triton: TritonStatistics | None) -> None:
    """The table, the files, and the exit code."""
    if triton is not None:
        run.server_ms |= triton.means()
    found = verdict.judge(run, slo)
    run.verdict = found.as_dict()
    print(table.summary(run, found), flush=True)  # noqa: T201
    environment.process_exit_code = found.exit_code
    given: Any = environment.parsed_options
    if given.run_json:
        runs.save(run, Path(given.run_json))
    if given.run_html:
        runs.write(Path(given.run_html), report.html(run, found))


def _exit_code(error: KServeKitError) -> int:
    return command.USAGE if isinstance(error, CannotStart) else command.NO_TARGET

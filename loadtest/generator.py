"""The load generator in this process, which must not have imported much before: locust patches it for gevent.

gRPC's loop is patched when the first channel is made, and asyncio is not used here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import locust.env  # first: it patches
from locust import events

from kservekit.errors import KServeKitError
from kservekit.loadtest import payload, table, users
from kservekit.loadtest.limit import Trial, is_stable
from kservekit.loadtest.options import Options
from kservekit.loadtest.payload import Payload
from kservekit.loadtest.publish import Publisher
from kservekit.loadtest.run import Run, percentile_of, together
from kservekit.loadtest.schedule import asked_in
from kservekit.loadtest.session import Session, Wire
from kservekit.loadtest.shapes import Closed, Load
from kservekit.loadtest.verdict import Verdict, judge

Say = Callable[[str], None]

TICK_S = 1.0
QUARTERS = 4


class Interrupted(Exception):
    """Ctrl-C, with what was measured until then."""

    def __init__(self, run: Run) -> None:
        super().__init__("interrupted")
        self.run = run


def prepared(options: Options) -> tuple[Wire, list[Payload]]:
    """A target that is there, and what to send it; CannotTest, or CannotStart for a payload."""
    wire = users.connect(options.target)
    spec = wire.probe()
    if options.payloads:
        return wire, payload.from_files(options.payloads, spec, options.target)
    return wire, payload.generated(spec, options.target, shapes=options.inputs)


def measure(
    options: Options,
    wire: Wire,
    payloads: Sequence[Payload],
    load: Load | Closed,
    publisher: Publisher,
    *,
    say: Say | None = None,
) -> Run:
    """One run, all of it. Interrupted on Ctrl-C, at once."""
    logging.getLogger("locust").setLevel(logging.WARNING)
    environment = locust.env.Environment(events=events, catch_exceptions=True)
    session = Session(
        wire,
        payloads,
        load,
        good_ms=options.slo.goodput_ms,
        max_in_flight=options.max_in_flight,
        trace_share=options.trace_share,
    )
    publisher.session = session
    open_loop = isinstance(load, Load)
    environment.user_classes = [users.user_class(session, open_loop=open_loop)]
    environment.stop_timeout = options.target.timeout_s
    runner = environment.create_local_runner()
    count = 1 if isinstance(load, Load) else load.users
    try:
        session.begin()
        runner.start(count, spawn_rate=count, wait=False)
        _watch(session, load, say, allowed_errors=_allowed_errors(options, load))
        if not open_loop:
            session.close_time()
        runner.stop()
    except KeyboardInterrupt:
        session.stopping = True
        environment.stop_timeout = 0
        run = session.result(interrupted=True)
        raise Interrupted(run) from None
    finally:
        runner.greenlet.kill(block=False)
        runner.user_greenlets.kill(block=False)
    if session.failure is not None:
        raise KServeKitError(f"the load generator failed: {session.failure!r}") from session.failure
    return session.result()


def trial(
    options: Options,
    wire: Wire,
    payloads: Sequence[Payload],
    rate: float,
    publisher: Publisher,
    say: Say | None = None,
) -> Trial:
    """One step of the search for the limit."""
    run = measure(options, wire, payloads, options.load(rate), publisher)
    verdict = judge(run, options.slo)
    found = _trial(rate, run, verdict)
    if say is not None:
        say(f"{rate:>10,.1f}/s  {'held  ' if found.held else 'broken'}  {found.reason}")
    return found


def _trial(rate: float, run: Run, verdict: Verdict) -> Trial:
    p99 = run.total.latency_ms.get("p99")
    figures = f"p99 {p99:.2f} ms" if p99 is not None else "no latency"
    if verdict.exit_code:
        return Trial(rate, False, verdict.reason, own_fault=verdict.outcome != "fail")
    seconds = run.seconds()
    size = max(1, len(seconds) // QUARTERS)
    quarters = [together(seconds[begin : begin + size]) for begin in range(0, size * QUARTERS, size)]
    medians = [percentile_of(quarter.bins, 50) * 1000 for quarter in quarters]
    if not is_stable(medians):
        listed = ", ".join(f"{median:.2f}" for median in medians)
        return Trial(rate, False, f"not stable: medians of its quarters {listed} ms")
    return Trial(rate, True, figures)


def _allowed_errors(options: Options, load: Load | Closed) -> float | None:
    """More, and nothing that is still to come can save the run."""
    if isinstance(load, Closed):
        return None
    whole = len(load.timestamps) if load.timestamps else asked_in(load.curve)
    return options.slo.error_rate * whole


def _watch(session: Session, load: Load | Closed, say: Say | None, *, allowed_errors: float | None) -> None:
    """Until the run is over, with a line each second."""
    recorder = session.recorder
    before = (0, 0, 0, 0)
    tick = 0
    if say is not None:
        say(table.PROGRESS_HEAD)
    while True:
        tick += 1
        left_s = tick * TICK_S - session.elapsed_s
        closing_s = load.duration_s - session.elapsed_s if isinstance(load, Closed) else left_s
        over = session.over.wait(max(0.0, min(left_s, closing_s)))
        now = (recorder.asked, recorder.sent, recorder.answers, recorder.errors)
        if say is not None and session.elapsed_s >= tick * TICK_S:
            asked, sent, answers, errors = (new - old for new, old in zip(now, before, strict=True))
            before = now
            bins = recorder.last_bins()
            p50_s, p99_s = (percentile_of(bins, percent) for percent in (50, 99))
            say(table.progress(tick, asked, sent, answers, errors, session.in_flight, p50_s, p99_s, session.busy))
        if over or (isinstance(load, Closed) and session.elapsed_s >= load.duration_s):
            return
        if allowed_errors is not None and recorder.errors > allowed_errors and not session.stopping:
            session.stopping = True
            if say is not None:
                say("the error rate is broken, whatever is still to come: stopping early")

"""`kservekit loadtest`: a load, a table, a verdict as the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kservekit.errors import CannotStart, KServeKitError
from kservekit.loadtest import options as flags
from kservekit.loadtest import shapes, slo
from kservekit.loadtest.target import CannotTest

EXAMPLES = f"""\
shapes (--shape), with --rate their highest or only rate:
{"".join(f"  {line}{chr(10)}" for line in shapes.HELP.splitlines())}
keys of an SLO file (--slo), or of a profile's `slo`:
  {", ".join(slo.LATENCIES)}: at most; numbers are milliseconds, "0.2 s" is one, too
  error_rate (default: 0.01), achieved_rate (0.95), goodput with goodput_ms: shares, or "1 %"
  min_rate: answers a second; cold_start_ms: until the first answer
  canary = {{revision = "photo-00002", share = 0.1}}: its part of the answers, give or take what chance explains

keys of a profile:
  {", ".join(flags.PROFILE_KEYS[:7])},
  {", ".join(flags.PROFILE_KEYS[7:16])},
  {", ".join(flags.PROFILE_KEYS[16:18])},
  payloads (files beside it) or inputs (shapes by name, or none), slo

examples:
  kservekit loadtest --url http://127.0.0.1:8080 --model photo --rate 100 --duration 30 --slo slo.toml
  kservekit loadtest --url grpc://127.0.0.1:8081 --model photo --wire v2-grpc --rate 50 --poisson 1 --duration 60
  kservekit loadtest profile.toml --json run.json --html run.html
  kservekit loadtest --url http://127.0.0.1:8080 --model photo --users 16 --think 0.5 --duration 30
  kservekit loadtest --url http://127.0.0.1:8080 --model photo --rate 50 --find-limit --duration 10 --slo slo.toml
  kservekit loadtest locust --host http://127.0.0.1:8080 --model photo --rate 100      locust's own page and flags
  kservekit loadtest locust --master --expect-workers 2 --headless --load-profile profile.toml --run-json run.json
  kservekit loadtest locust --worker --master-host 10.0.0.5
  kservekit loadtest compare before.json after.json
  kservekit loadtest compare run.json --revisions photo-00001 photo-00002

exit codes: 0 the SLO is held (compare: better), 1 it is not (worse), 2 the command, a profile or an SLO file is wrong,
3 no verdict: no data, or a generator too slow (compare: cannot tell), 4 the target does not answer or is not what it is
said to be, 130 Ctrl-C
"""

PASS, FAIL, USAGE, NO_VERDICT, NO_TARGET, STOPPED = 0, 1, 2, 3, 4, 130

LEAST_TRIAL_S = 4
"""Whether a rate is stable is seen in the quarters of a trial, and the series is by the second."""

Put = Callable[[str], None]


def run(arguments: Sequence[str], put: Put, say: Put) -> int:
    """`put` takes results, `say` progress and complaints."""
    try:
        if arguments[:1] == ["compare"]:
            return _compare(arguments[1:], put)
        if arguments[:1] == ["locust"]:
            _locust(arguments[1:])
        return _loadtest(arguments, put, say)
    except CannotStart as error:
        say(f"kservekit loadtest: {error}")
        return USAGE
    except CannotTest as error:
        say(f"kservekit loadtest: {error}")
        return NO_TARGET
    except KServeKitError as error:
        say(f"kservekit loadtest: {error}")
        return NO_VERDICT


def _loadtest(arguments: Sequence[str], put: Put, say: Put) -> int:
    given = _parser().parse_args(arguments)
    if given.users is not None and given.rate is not None:
        raise CannotStart("--users is a closed loop and --rate an open one: give one of them")
    _check_installed()
    options = flags.resolve(
        given,
        url=given.url,
        users=given.users,
        duration_s=given.duration,
        profile=given.profile and Path(given.profile),
    )
    if given.users is not None:
        options = dataclasses.replace(options, rate=None, shape="constant")
    if math.isinf(options.duration_s) and not options.shape.startswith("replay:"):
        raise CannotStart("no --duration: expected the seconds of the run")
    if given.find_limit and options.rate is None:
        raise CannotStart("--find-limit needs the rate to begin with: --rate")
    if given.find_limit and options.duration_s < LEAST_TRIAL_S:
        raise CannotStart(f"--duration is {options.duration_s:g}: a trial of the limit takes {LEAST_TRIAL_S} s or more")
    for file in filter(None, (given.json, given.html)):
        if not Path(file).parent.is_dir():
            raise CannotStart(f"{file} cannot be written: there is no folder {Path(file).parent}")
    from kservekit.loadtest import generator, report, table, verdict
    from kservekit.loadtest import run as runs
    from kservekit.loadtest.publish import Publisher
    from kservekit.loadtest.shapes import Closed
    from kservekit.loadtest.triton_statistics import TritonStatistics

    publisher = Publisher(options)
    wire, payloads = generator.prepared(options)
    progress = None if given.quiet else say
    try:
        if given.find_limit:
            return _limit(options, wire, payloads, publisher, given, put, progress)
        triton = TritonStatistics(options.triton, options.target.model) if options.triton else None
        load = options.load() if options.open_loop else Closed(options.users, options.duration_s, options.think_s)
        try:
            measured = generator.measure(options, wire, payloads, load, publisher, say=progress)
        except generator.Interrupted as stopped:
            measured = stopped.run
        if triton is not None:
            measured.server_ms |= triton.means()
    finally:
        publisher.close()
        wire.close()
    found = verdict.judge(measured, options.slo)
    if measured.interrupted:
        found = dataclasses.replace(found, outcome=verdict.NO_DATA, reason=f"interrupted; so far: {found.reason}")
    measured.verdict = found.as_dict() | ({"exit_code": STOPPED} if measured.interrupted else {})
    put(table.summary(measured, found))
    if given.json:
        runs.save(measured, Path(given.json))
    if given.html:
        runs.write(Path(given.html), report.html(measured, found))
    return STOPPED if measured.interrupted else found.exit_code


def _check_installed() -> None:
    for name in ("locust", "hdrh"):
        if importlib.util.find_spec(name) is None:
            raise CannotStart(f"{name} is not installed: pip install 'kservekit[loadtest]'")


def _locust(arguments: Sequence[str]) -> NoReturn:
    """This process becomes locust's, so that its signals and its exit code are."""
    _check_installed()
    file = str(Path(__file__).with_name("locustfile.py"))
    os.execv(sys.executable, [sys.executable, "-m", "locust", "-f", file, *arguments])  # noqa: S606  the user's flags


def _limit(
    options: flags.Options,
    wire: Any,
    payloads: Any,
    publisher: Any,
    given: argparse.Namespace,
    put: Put,
    say: Put | None,
) -> int:
    from kservekit.loadtest import generator, limit, table
    from kservekit.loadtest import run as runs

    try:
        found = limit.search(
            lambda rate: generator.trial(options, wire, payloads, rate, publisher, say),
            options.rate or 1.0,
            most=given.most,
        )
    except generator.Interrupted:
        return STOPPED
    put(table.limit(found))
    if given.json:
        runs.write(Path(given.json), json.dumps(dataclasses.asdict(found), indent=1))
    if found.rate:
        return PASS
    return NO_VERDICT if found.trials[-1].own_fault else FAIL


def _compare(arguments: Sequence[str], put: Put) -> int:
    parser = argparse.ArgumentParser(
        prog="kservekit loadtest compare",
        description="Whether the second run, or revision, is better or worse than the first, by intervals from a"
        " bootstrap of blocks of seconds. Exit codes: 0 better, 1 worse, 3 cannot tell.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="two, or one with --revisions")
    parser.add_argument("--revisions", nargs=2, metavar=("BEFORE", "AFTER"), help="of one run")
    parser.add_argument("--json", action="store_true", help="for a program")
    given = parser.parse_args(arguments)
    from kservekit.loadtest import compare, table
    from kservekit.loadtest.run import read

    if len(given.runs) != (1 if given.revisions else 2):
        raise CannotStart(f"{len(given.runs)} runs: expected two, or one with --revisions")
    measured = [read(file) for file in given.runs]
    if given.revisions:
        sides = compare.sides_of(measured[0], *given.revisions)
    else:
        widths = {one.width_s for one in measured}
        if len(widths) > 1:
            raise CannotStart("the runs are too different in length: their series have other widths")
        sides = tuple([one.seconds()] for one in measured)  # type: ignore[assignment]
    found = compare.compare(*sides)
    put(json.dumps(dataclasses.asdict(found), indent=1) if given.json else table.comparison(found))
    return {compare.BETTER: PASS, compare.WORSE: FAIL}.get(found.verdict, NO_VERDICT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kservekit loadtest",
        usage="kservekit loadtest [PROFILE] [--url URL --model NAME ...] | compare RUN.json RUN.json | locust ...",
        description="Sends a load to a model and says whether it holds an SLO. Latency counts from the moment that a"
        " request ought to have started, so waiting is in it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", nargs="?", metavar="PROFILE", help="a file of these settings, TOML or YAML")
    parser.add_argument("--url", help="http://host:port, https:// or, for gRPC, grpc:// or grpcs://")
    flags.add_flags(parser)
    parser.add_argument("--users", type=int, metavar="N", help="closed loop: users with one request at a time each")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of the run, or of each trial")
    parser.add_argument("--find-limit", action="store_true", help="search the highest rate that holds the SLO")
    parser.add_argument(
        "--most", type=float, default=100_000, metavar="N", help="the highest rate of that search (default: 100000)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the run and its verdict")
    parser.add_argument("--html", metavar="FILE", help="write a report, one file that needs no network")
    parser.add_argument("--quiet", action="store_true", help="no line a second")
    return parser

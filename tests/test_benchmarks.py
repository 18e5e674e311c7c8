"""kservekit bench: what it reads from the load generators, what it makes of it, and one row in earnest."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib import metadata

import pytest
from calls import eventually, kservekit, processes_with

from kservekit.benchmarks import h2load, load, run, surroundings, table, wrk
from kservekit.benchmarks.check import WrongAnswer, check
from kservekit.benchmarks.contest import OURS, STOCK, TRITON, Contender, Figure, Result, Row, Target, Unit, met, ratios
from kservekit.benchmarks.payloads import PAYLOADS, SMALL
from kservekit.benchmarks.rows import ROWS
from kservekit.errors import CannotStart
from kservekit.local.triton_install import TritonUnavailable

WRK = """\
# wrk -t1 -c8 -d1s --timeout=20s --script=small-json.lua http://127.0.0.1:50299/v2/models/small/infer
Running 1s test @ http://127.0.0.1:50299/v2/models/small/infer
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.59ms    1.82ms  10.93ms   78.42%
    Req/Sec     3.36k     1.05k    5.00k    72.73%
  3665 requests in 1.10s, 1.00MB read
Requests/sec:   3331.73
Transfer/sec:      0.91MB
kservekit {"answers": 3665, "us": 1100028, "p50_us": 1610, "p99_us": 8057, "not_2xx": 0, "broken": 0, "late": 0}
"""

H2LOAD = """\
Warm-up phase is over for thread #0.
Main benchmark duration is started for thread #0.
Application protocol: h2c
Main benchmark duration is over for thread #0. Stopping all clients.
Stopped all clients for thread #0

finished in 1.00s, 2053.00 req/s, 275.38KB/s
requests: 2053 total, 2061 started, 2053 done, 2053 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2053 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 275.38KB (281991) total, 6.31KB (6459) headers (space savings 96.12%), 102.25KB (104703) data
                     min         max         mean         sd        +/- sd
time for request:      418us     81.51ms      3.86ms      5.20ms    96.54%
"""

REFUSED = """\
finished in 1.00s, 2954.00 req/s, 418.21KB/s
requests: 2954 total, 2962 started, 2954 done, 2954 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2954 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 418.21KB (428246) total, 357.88KB (366472) headers (space savings 23.42%), 0B (0) data
"""

NOT_FOUND = """\
finished in 13.28ms, 7528.42 req/s, 1.46MB/s
requests: 100 total, 100 started, 100 done, 0 succeeded, 100 failed, 0 errored, 0 timeout
status codes: 0 2xx, 0 3xx, 100 4xx, 0 5xx
traffic: 19.82KB (20300) total, 9.96KB (10200) headers (space savings 0.00%), 5.76KB (5900) data
"""

LOG = "1795476361277173\t200\t1169\n1795476361277163\t200\t3353\n1795476361277149\t200\t1634\n"


def test_wrks_figures_are_those_of_its_histogram():
    found = wrk.parse(WRK)
    assert (found.answers, found.p50_s, found.p99_s) == (3665, 0.00161, 0.008057)
    assert found.per_s == pytest.approx(3331.73, abs=0.01)  # as wrk itself rounds it


@pytest.mark.parametrize(
    ("key", "words"), [("not_2xx", "7 were no 2xx"), ("broken", "7 broke off"), ("late", "7 took over 20 s")]
)
def test_an_answer_to_wrk_that_is_none_fails_its_contender(key, words):
    with pytest.raises(WrongAnswer, match=words):
        wrk.parse(WRK.replace(f'"{key}": 0', f'"{key}": 7'))


def test_h2loads_rate_is_its_own_and_the_percentiles_come_from_its_log():
    found = h2load.parse(H2LOAD, LOG, least_bytes=51)
    assert (found.answers, found.per_s, found.p50_s, found.p99_s) == (2053, 2053.0, 0.001634, 0.003353)


def test_grpc_errors_that_h2load_counts_as_successes_are_found_by_their_size():
    with pytest.raises(WrongAnswer, match="2954 answers to h2load had 0 bytes: expected 51 each"):
        h2load.parse(REFUSED, LOG, least_bytes=51)
    with pytest.raises(WrongAnswer, match="expected 52 each"):
        h2load.parse(H2LOAD, LOG, least_bytes=52)
    with pytest.raises(WrongAnswer, match="0 succeeded, 100 failed"):
        h2load.parse(NOT_FOUND, LOG, least_bytes=0)


def test_percentiles_are_values_that_were_measured():
    values = list(range(1, 101))
    assert [h2load.percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert h2load.percentile([7], 99) == 7


def test_a_missing_load_generator_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CannotStart, match=r"wrk and h2load: not on PATH.*apt-get install wrk nghttp2-client"):
        load.require(["h2load", "wrk"])
    load.require([])


# The table


def nobody(_stage):
    raise AssertionError("nothing is started here")


def result(side, *values, targets=(), **fields):
    figures = [Figure(value, 0.0015, 0.123) for value in values]
    return Result(Contender(side, "async", nobody, targets=targets), figures, **fields)


class Course:
    """Gives each side the figures that it is made with."""

    unit = Unit("answers a second", lambda value: f"{value:.0f}/s")
    needs = ()

    def __init__(self, **values):
        self.values = {side: iter(found) for side, found in values.items()}

    def prepare(self, contender, stage, stack, seconds):
        contender.serve(stage)
        return lambda: self.measure(next(self.values[contender.side]))

    def measure(self, value):
        if isinstance(value, Exception):
            raise value
        return Figure(value)


RESULTS = [
    result(OURS, 90, 100, 110, targets=(Target(4, STOCK), Target(0.6, TRITON, goal=True), Target(50, at_most=True))),
    result(STOCK, 24, 20, 20),
    result(STOCK, 25),
    result(TRITON, 200),
]


def test_ratios_are_of_medians_and_to_the_better_of_two():
    assert ratios(RESULTS[0], RESULTS) == {STOCK: 4.0, TRITON: 0.5}
    assert [met(target, RESULTS[0], RESULTS) for target in RESULTS[0].contender.targets] == [True, False, False]
    assert met(Target(1, "bare"), RESULTS[0], RESULTS) is None


def test_the_table_has_a_line_a_contender_with_its_targets():
    found = table.render([(Row("a-row", "a row", Course(), ()), RESULTS)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in found]
    assert len({len(line) for line in found}) == 1
    assert cells[0] == list(table.HEAD)
    assert cells[2] == [
        *("a-row", "ours", "async", "100/s", "90/s..110/s", "1.5 ms", "123 ms", "4.00x stock, 0.50x Triton"),
        *(">= 4x stock, goal >= 0.6x Triton, <= 50/s", "yes, no, no"),
    ]
    assert cells[5][1:] == ["Triton", "async", "200/s", "200/s..200/s", "1.5 ms", "123 ms", "8.00x stock", "", ""]


def test_a_contender_without_figures_is_told_apart_and_its_target_is_open():
    found = [
        result(OURS, 5, targets=(Target(4, STOCK),)),
        result(STOCK, failure="it is ill"),
        result(TRITON, absent="none"),
    ]
    row = Row("a-row", "a row", Course(), ())
    lines = table.render([(row, found)]).splitlines()[2:]
    assert ["FAILED" in line for line in lines] == [False, True, False]
    assert "absent" in lines[2]
    assert lines[0].split("|")[-2].strip() == "-"
    assert table.complaints([(row, found)]) == [
        "FAILED: a-row, stock (async): it is ill",
        "absent: a-row, Triton (async): none",
    ]


def test_a_command_line_is_shown_once_whatever_its_ports():
    commands = [["/venv/python", "-m", "stock", f"--http_port={port}", "--model_name=a b"] for port in (41234, 8080)]
    assert surroundings.command_lines(commands) == ["python -m stock --http_port=41234 '--model_name=a b'"]


# The run


def contest(*contenders, repeats, **values):
    told = []
    stage = run.LocalStage(None, told.append)
    row = Row("a-row", "a row", Course(**values), contenders)
    return run.contest(row, stage, repeats=repeats, seconds=1, say=told.append), told


def quiet(side):
    return Contender(side, "plain", lambda _stage: nullcontext())


def test_contenders_take_turns_and_one_that_fails_is_out():
    values = {OURS: [5.0, 6.0, 7.0], STOCK: [1.0, WrongAnswer("other values"), 3.0]}
    results, told = contest(quiet(OURS), quiet(STOCK), repeats=3, **values)
    assert [line.split()[:2] for line in told[1:]] == [
        ["1/3", "ours"],
        ["1/3", "stock"],
        ["2/3", "ours"],
        ["FAILED:", "stock"],
        ["3/3", "ours"],
    ]
    assert (results[0].median, results[0].failure) == (6.0, "")
    assert (math.isnan(results[1].median), results[1].failure) == (True, "other values")


def test_without_a_triton_its_contenders_are_absent_and_nothing_failed():
    def serve(_stage):
        raise TritonUnavailable("not on this machine")

    results, _ = contest(quiet(OURS), Contender(TRITON, "identity", serve), repeats=1, ours=[1.0])
    assert (results[1].absent, results[1].failure) == ("not on this machine", "")


def test_rows_are_named_once_and_each_of_ours_has_a_target():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        sides = {contender.side for contender in row.contenders}
        for contender in row.contenders:
            assert bool(contender.targets) == (contender.side == OURS)
            assert {target.against for target in contender.targets} <= sides | {""}
            assert contender.handler in ("plain", "async", "identity")


def test_the_payloads_of_the_load_are_the_calls_of_our_own_clients():
    for payload in PAYLOADS.values():
        body, headers = payload.rest(binary=True)
        assert body[int(headers["inference-header-content-length"]) :] == payload.array.tobytes()
        assert payload.grpc()[5:].endswith(payload.array.tobytes())


def test_a_server_that_is_not_there_is_a_wrong_answer_and_no_traceback():
    for wire in ("rest-json", "grpc"):
        with pytest.raises(WrongAnswer, match=f"{wire} of model 'small': Unavailable"):
            check(SMALL, wire, http_url="127.0.0.1:1", grpc_url="127.0.0.1:1")


def test_help_and_list_need_no_load_generator(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path)}
    for flag, words in (("--help", "kservekit bench --rows"), ("--list", ROWS[0].title)):
        done = kservekit("bench", flag, env=environment)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    done = kservekit("bench", "--rows", "noop-rest-json", env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("kservekit bench: wrk: not on PATH")


def test_a_row_that_there_is_not_is_refused_with_those_that_there_are():
    done = kservekit("bench", "--rows", "nop")
    assert done.returncode == 1
    assert done.stderr.startswith("kservekit bench: no row 'nop': the rows are noop-rest-tensor,")
    done = kservekit("bench", "--seconds", "0")
    assert done.returncode == 2
    assert "'0': expected a whole number above 0" in done.stderr


@pytest.fixture
def generators():
    try:
        load.require(load.PACKAGES)
    except CannotStart as missing:
        if os.environ.get("KSERVEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.mark.usefixtures("generators")
def test_a_row_in_earnest():
    done = kservekit("bench", "--rows", "noop-rest-json", "--repeats", "1", "--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [row[:3] for row in rows[2:]] == [
        ["noop-rest-json", "ours", "async"],
        ["noop-rest-json", "ours", "plain"],
        ["noop-rest-json", "stock", "plain"],
    ]
    assert all(row[3].endswith("/s") and row[5].endswith(" ms") for row in rows[2:])
    assert {row[9] for row in rows[2:4]} <= {"yes", "no"}
    assert "-m kservekit.benchmarks.stock_predictor --model_name=small --http_port=" in done.stdout
    assert f"kserve {metadata.version('kserve')}, grpcio" in done.stdout
    assert "1/1 stock (plain)" in done.stderr


@pytest.mark.usefixtures("generators")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_nothing_of_it_is_left_when_it_is_ended(number):
    mark = f"BENCH_TEST={os.getpid()}-{number}"
    command = [sys.executable, "-m", "kservekit.cli", "bench", "--rows", "noop-rest-json", "--seconds", "60"]
    name, _, value = mark.partition("=")
    with subprocess.Popen(command, env={**os.environ, name: value}, stderr=subprocess.PIPE) as process:
        assert eventually(lambda: any("wrk -t1" in line for line in processes_with(mark).values()))
        time.sleep(0.1)
        process.send_signal(number)
        process.wait(30)
    assert eventually(lambda: not processes_with(mark), 30), processes_with(mark)

"""The pure half of load tests: starts, percentiles, SLOs, verdicts, comparisons and the search for the limit."""

import itertools
import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from kservekit.codec import grpc, rest_v1, rest_v2
from kservekit.errors import CannotStart
from kservekit.loadtest import compare, limit, payload, report, run, schedule, shapes, slo, verdict
from kservekit.loadtest.recorder import MOST_KINDS, MOST_SLOTS, TIMED_OUT, Outcome, Recorder
from kservekit.loadtest.slo import Slo
from kservekit.loadtest.target import Target
from kservekit.oip.triton_messages import messages
from kservekit.tensors import DATATYPES, ModelSpec, TensorSpec

OK = Outcome()


def starts(text, rate, duration_s, seed=None):
    return list(shapes.load(text, rate, duration_s, seed=seed).starts())


# starts


def test_a_constant_rate_starts_a_request_at_each_tick():
    assert starts("constant", 4, 1) == [0, 0.25, 0.5, 0.75]
    endless = shapes.load("constant", 4, math.inf).starts()
    assert list(itertools.islice(endless, 40_000, 40_001)) == [10_000]


@pytest.mark.parametrize(
    ("text", "begin", "end", "count"),
    [
        ("ramp", 0, 5, 125),
        ("ramp", 5, 10, 375),
        ("ramp:from=100", 0, 5, 500),
        ("steps:from=20,count=5", 0, 2, 40),
        ("steps:from=20,count=5", 4, 6, 120),
        ("steps:from=20,count=5", 8, 10, 200),
        ("spike:peak=500,at=4,for=2", 0, 4, 400),
        ("spike:peak=500,at=4,for=2", 4, 6, 1000),
        ("spike:peak=500,at=4,for=2", 6, 10, 400),
        ("diurnal:low=20", 0, 1, 22),
        ("diurnal:low=20", 4.5, 5.5, 99),
        ("diurnal:low=20,period=5", 2, 3, 97),
    ],
)
def test_a_shape_asks_for_what_lies_below_its_curve(text, begin, end, count):
    found = sum(begin <= at < end for at in starts(text, 100, 10))
    assert found == pytest.approx(count, abs=2)


def test_poisson_starts_are_the_same_for_the_same_seed_and_as_irregular_as_they_ought_to_be():
    found = starts("constant", 100, 200, seed=7)
    assert found == starts("constant", 100, 200, seed=7)
    assert found != starts("constant", 100, 200, seed=8)
    gaps = np.diff(found)
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


rates = st.floats(0.0, 500.0)


@given(st.lists(st.tuples(st.floats(0.01, 5.0), rates, rates), min_size=1, max_size=5), st.none() | st.integers(0, 99))
@settings(deadline=None)
def test_starts_come_in_order_and_within_the_curve_whatever_it_is(segments, seed):
    curve, at = [], 0.0
    for length, low, high in segments:
        curve += [(at, low), (at + length, high)]
        at += length
    found = list(schedule.arrivals(curve, seed=seed))
    assert found == sorted(found)
    assert all(0 <= start <= at * (1 + 1e-9) for start in found)
    if seed is None:
        assert len(found) == pytest.approx(schedule.asked_in(curve), abs=1.01)


def test_recorded_starts_are_replayed_from_the_first_on(tmp_path):
    file = tmp_path / "starts.txt"
    file.write_text("# seconds\n1700000002.5\n1700000000\n\n1700000001\n")
    assert starts(f"replay:{file}", None, math.inf) == [0, 1, 2.5]
    assert starts(f"replay:{file},speed=2", None, math.inf) == [0, 0.5, 1.25]
    file.write_text("2026-03-01T10:00:00+00:00\n2026-03-01T10:00:00.250+00:00\n")
    assert starts(f"replay:{file}", None, math.inf) == [0, 0.25]
    assert shapes.load(f"replay:{file}", None, math.inf).duration_s == 0.5
    assert shapes.load(f"replay:{file}", None, 0.1).duration_s == 0.1


@pytest.mark.parametrize(
    ("text", "rate", "sentence"),
    [
        ("rampe", 10, "--shape is 'rampe': did you mean 'ramp'? expected one of constant, ramp, steps,"),
        ("ramp:form=5", 10, "'form' is nothing that it takes; did you mean 'from'?"),
        ("ramp:from=x", 10, "from is 'x', expected a number"),
        ("spike", 10, "a spike needs its rate, such as spike:peak=500"),
        ("constant", 0, "--rate is 0: expected requests a second, more than 0"),
        ("constant", math.inf, "--rate is inf"),
        ("replay:/no/such", None, "the recorded starts /no/such cannot be read"),
    ],
)
def test_a_shape_that_cannot_be_says_what_was_likely_meant(text, rate, sentence):
    with pytest.raises(CannotStart) as found:
        shapes.load(text, rate, 10.0)
    assert sentence in str(found.value)


# percentiles


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_one_percent_of_exact(seed):
    draw = np.random.default_rng(seed)
    latencies = np.concatenate([draw.lognormal(-5, 0.8, 20_000), draw.pareto(1.5, 500) + 0.2])
    recorder = Recorder()
    for at, latency in enumerate(latencies):
        recorder.end("w", "n", OK, due_s=at / 1000, sent_s=at / 1000, end_s=at / 1000 + latency)
    found = recorder.total().latency_ms
    for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("p999", 99.9), ("max", 100)):
        exact = np.percentile(latencies, percent, method="inverted_cdf") * 1000
        assert found[name] == pytest.approx(exact, rel=0.01), name
    assert found["mean"] == pytest.approx(latencies.mean() * 1000, rel=0.01)


def test_a_latency_counts_from_the_intended_start_and_beside_it_from_the_send():
    recorder = Recorder()
    recorder.end("w", "n", OK, due_s=1.0, sent_s=3.0, end_s=3.5)
    total = recorder.total()
    assert total.latency_ms["max"] == pytest.approx(2500, rel=0.001)
    assert total.from_send_ms["max"] == pytest.approx(500, rel=0.001)
    assert recorder.first_answer_s == 2.5


def test_wires_names_and_revisions_are_told_apart_and_errors_by_their_kind():
    recorder = Recorder(good_ms=15)
    for revision, latency, error in (("a", 0.01, ""), ("a", 0.02, ""), ("b", 0.01, "HTTP 503"), ("b", 9.0, TIMED_OUT)):
        recorder.end("v1", "n", Outcome(error, revision), due_s=0, sent_s=0, end_s=latency)
    a, b = recorder.parts()
    assert (a.revision, a.answers, a.good, a.errors) == ("a", 2, 1, 0)
    assert (b.revision, b.answers, b.good, b.errors) == ("b", 0, 0, 2)
    assert recorder.errors_by == {"HTTP 503": 1, TIMED_OUT: 1}
    # A quick refusal would make it look fast; whoever ran into the time-out waited so long at least.
    assert b.latency_ms["p50"] == pytest.approx(9000, rel=0.001)


def test_memory_does_not_grow_with_the_length_of_the_run():
    recorder = Recorder()
    for at in range(40_000):
        recorder.ask(at)
        recorder.send(at, 10)
        recorder.end("w", "n", Outcome(f"HTTP {at % 300}", f"r{at % 300}"), due_s=at, sent_s=at, end_s=at + 0.01)
    asked, sent, series = recorder.series()
    assert recorder.width_s == 64
    assert len(asked) <= MOST_SLOTS
    assert sum(asked) == sum(sent) == sum(one.errors for arm in series.values() for one in arm) == 40_000
    assert len(recorder.parts()) <= MOST_KINDS + 1
    assert len(recorder.errors_by) <= MOST_KINDS + 1
    assert len(series) <= MOST_KINDS + 1


def test_a_generator_that_has_run_ten_times_as_long_has_the_memory_that_it_had():
    """To 7 bytes a request: a list of latencies would be 32."""
    script = Path(__file__).with_name("load_memory.py")
    done = subprocess.run([sys.executable, script, "10000"], capture_output=True, text=True, check=True)
    after_one, after_ten = map(int, done.stdout.split())
    assert after_ten - after_one < 640


# runs


def measured(recorder=None, *, asked=1000, sent=1000, answers=1000, errors=0, duration_s=10.0, loop="open", **changes):
    recorder = recorder or Recorder()
    total = run.Part("", "", "", answers, errors, answers, {"p50": 5.0, "p99": 40.0}, {})
    fields = {
        "target": {"url": "http://h", "model": "m", "wire": "v1"},
        "load": {"loop": loop, "shape": "constant", "asked_per_s": 100.0, "users": 1, "think_s": 0},
        "started": "2026-03-01T10:00:00+00:00",
        "first_answer_ms": 5.0,
        "sent_bytes": 1,
        "received_bytes": 1,
        "errors_by": {"HTTP 503": errors} if errors else {},
        "parts": [total],
        "width_s": 1,
        "asked_series": [],
        "sent_series": [],
        "series": {},
        "generator": {"busy": 0.2, "blocked_s": 0.0},
        "environment": {},
        "good": answers,
        **changes,
    }
    return run.Run(asked=asked, sent=sent, answers=answers, errors=errors, duration_s=duration_s, total=total, **fields)


def test_a_run_is_read_back_as_it_was_saved(tmp_path):
    recorder = Recorder()
    recorder.end("w", "n", OK, due_s=0.5, sent_s=0.5, end_s=0.6)
    _, _, series = recorder.series()
    whole = measured(parts=recorder.parts(), series=series)
    run.save(whole, tmp_path / "run.json")
    assert run.read(tmp_path / "run.json") == whole
    histogram = HdrHistogram.decode(recorder.parts()[0].hdr)
    assert histogram.get_value_at_percentile(50) == pytest.approx(100_000, rel=0.001)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "total": 5, "parts": 1}'])
def test_a_file_that_is_no_run_is_said_to_be_none(tmp_path, text):
    file = tmp_path / "run.json"
    file.write_text(text)
    with pytest.raises(CannotStart, match=str(file)):
        run.read(file)


# SLOs


def test_an_slo_says_its_bounds_in_toml_or_yaml_with_units_or_without(tmp_path):
    toml, yaml = tmp_path / "slo.toml", tmp_path / "slo.yaml"
    toml.write_text('p99_ms = 50\nerror_rate = "0.1 %"\nmin_rate = 95\n[canary]\nrevision = "b"\nshare = 0.1\n')
    yaml.write_text("p99_ms: 0.05 s\nerror_rate: 0.001\nmin_rate: 5700/min\ncanary: {revision: b, share: 10 %}\n")
    assert slo.read(toml) == slo.read(yaml)
    assert slo.read(toml).p99_ms == 50


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("p99 = 5", "unknown key 'p99'; did you mean 'p99_ms'?"),
        ("eror_rate = 0.1", "unknown key 'eror_rate'; did you mean 'error_rate'?"),
        ("p99_ms = '5 sec'", "p99_ms is '5 sec': unknown unit 'sec'; did you mean 's'?"),
        ("error_rate = 5", "error_rate is 5: expected a share from 0 to 1, or a text such as '5 %'"),
        ("p99_ms = true", "p99_ms is True: expected a number"),
        ("p99_ms = -1", "p99_ms is -1: expected a number that is not negative"),
        ("p99_ms = nan", "p99_ms is nan"),
        ("p99_ms = 'fast'", "p99_ms is 'fast': expected a number, alone or with one of us, ms, s, min"),
        ("goodput = 0.9", "goodput needs goodput_ms"),
        ("canary = 5", "canary is 5: expected revision and share"),
        ("canary = {revision = 'b'}", "canary needs revision"),
        ("canary = {revison = 'b', share = 0.1}", "unknown key 'revison'; did you mean 'revision'?"),
        ("p99_ms = ", "is not TOML"),
    ],
)
def test_an_slo_file_that_cannot_be_names_what_is_wrong_and_what_was_likely_meant(tmp_path, text, sentence):
    file = tmp_path / "slo.toml"
    file.write_text(text)
    with pytest.raises(CannotStart) as found:
        slo.read(file)
    assert str(file) in str(found.value)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


# verdicts


@pytest.mark.parametrize(
    ("whole", "bounds", "outcome", "code", "reason"),
    [
        (measured(), Slo(p99_ms=50), "pass", 0, "pass: 1000 answers, 3 of 3 objectives"),
        (measured(), Slo(p99_ms=30), "fail", 1, "fail: p99_ms 40 ms, at most 30 ms"),
        (measured(answers=980, errors=20), Slo(), "fail", 1, "fail: error_rate 2 %, at most 1 % (20 errors of 1000)"),
        (measured(answers=980, errors=20), Slo(error_rate=0.02), "pass", 0, "pass"),
        (measured(answers=0, errors=1000), Slo(error_rate=1), "fail", 1, "none of 1000 requests had an answer"),
        (measured(asked=0, sent=0, answers=0), Slo(), "no data", 3, "no request was sent"),
        (measured(answers=0), Slo(), "no data", 3, "none of 1000 requests ended"),
        (measured(), Slo(p999_ms=5), "no data", 3, "p999_ms not measured"),
        (measured(good=900), Slo(goodput=0.95, goodput_ms=9), "fail", 1, "goodput 90 %, at least 95 % (900 of 1000"),
        (measured(), Slo(min_rate=101), "fail", 1, "min_rate 100/s, at least 101/s"),
        (measured(), Slo(cold_start_ms=4), "fail", 1, "cold_start_ms 5 ms, at most 4 ms"),
        (measured(sent=900, answers=900), Slo(), "generator too slow", 3, "the generator could not keep up: achieved"),
        (
            measured(sent=900, answers=900, generator={"busy": 0.97, "blocked_s": 5.0}),
            Slo(p99_ms=1),
            "generator too slow",
            3,
            "it was busy 97% of the time",
        ),
        (
            measured(sent=900, answers=900, generator={"busy": 0.2, "blocked_s": 5.0}),
            Slo(),
            "fail",
            1,
            "and 5.0 s were waits for a place among those in flight",
        ),
        (measured(sent=900, answers=900, loop="closed"), Slo(), "pass", 0, "pass"),
    ],
)
def test_a_run_passes_or_fails_for_a_reason_or_there_is_no_verdict(whole, bounds, outcome, code, reason):
    found = verdict.judge(whole, bounds)
    assert (found.outcome, found.exit_code) == (outcome, code)
    assert reason in found.reason
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("mine", "held"), [(100, True), (120, True), (80, True), (150, False), (55, False), (0, False)]
)
def test_a_canarys_share_may_be_off_by_what_chance_explains_and_no_more(mine, held):
    parts = [
        run.Part("v1", "n", revision, count, 0, count, {}, {})
        for revision, count in (("new", mine), ("old", 1000 - mine))
    ]
    found = verdict.judge(measured(parts=parts), Slo(canary=slo.Canary("new", 0.1)))
    assert (found.outcome == "pass") is held


def test_a_canary_whose_answers_do_not_say_so_gives_no_verdict():
    found = verdict.judge(measured(), Slo(canary=slo.Canary("new", 0.1)))
    assert (found.outcome, found.exit_code) == ("no data", 3)


# comparisons


def synthetic(seed, *, factor=1.0, seconds=60, rate=100, errors=0.0):
    """Latencies as a server's are: with a tail, and slower for some seconds together."""
    draw = np.random.default_rng(seed)
    recorder = Recorder()
    mood = 0.0
    for second in range(seconds):
        mood = 0.7 * mood + draw.normal(0, 0.05)
        for at, latency in enumerate(draw.lognormal(-5 + mood, 0.4, rate)):
            due = second + at / rate
            outcome = Outcome("HTTP 503") if draw.random() < errors else OK
            recorder.end("w", "n", outcome, due_s=due, sent_s=due, end_s=due + factor * latency)
    return [recorder.series()[2][""]]


def test_a_revision_against_itself_cannot_be_told_apart():
    verdicts = [compare.compare(synthetic(seed), synthetic(1000 + seed), seed=seed).verdict for seed in range(20)]
    assert verdicts.count("cannot tell") >= 19


def test_one_that_is_ten_percent_slower_is_found_and_so_is_a_faster_one():
    pairs = [(synthetic(seed, seconds=180), synthetic(1000 + seed, seconds=180, factor=1.1)) for seed in range(5)]
    slower = [compare.compare(before, after) for before, after in pairs]
    assert [found.verdict for found in slower].count("worse") >= 4
    assert "p50_ms" in slower[0].reason
    assert compare.compare(synthetic(1, factor=1.2), synthetic(2)).verdict == "better"


def test_more_errors_are_worse_even_where_the_answers_are_as_fast():
    found = compare.compare(synthetic(1), synthetic(2, errors=0.05))
    assert found.verdict == "worse"
    assert "error_rate 0.00% -> " in found.reason


def test_runs_that_are_too_short_to_be_compared_are_refused():
    with pytest.raises(CannotStart, match=r"after has 2 whole blocks of 5 s: expected 30 s or more"):
        compare.compare(synthetic(1), synthetic(2, seconds=12))


# the limit


def search(holds, start=50.0, **options):
    tried = []

    def trial(rate):
        tried.append(rate)
        return limit.Trial(rate, holds(rate, tried), "because")

    return limit.search(trial, start, most=options.get("most", 1e6)), tried


@pytest.mark.parametrize("true", [3.0, 49.0, 51.0, 777.0, 12_345.0])
def test_the_limit_is_found_from_below_or_above(true):
    found, _ = search(lambda rate, _: rate <= true)
    assert found.rate <= true <= found.rate * 1.06
    assert "did not: because" in found.reason


def test_one_bad_moment_is_not_taken_for_the_limit():
    found, _ = search(lambda rate, tried: rate <= 777 and len(tried) != 2)
    assert found.rate == pytest.approx(777, rel=0.06)


def test_a_search_ends_at_the_most_that_may_be_tried_or_with_nothing():
    assert search(lambda rate, _: True, most=300)[0].rate == 300
    found, tried = search(lambda rate, _: False)
    assert found.rate == 0
    assert len(tried) <= limit.MOST_TRIALS + 2


def test_answers_that_become_slower_and_slower_are_not_stable():
    assert limit.is_stable([50, 5.0, 5.2, 5.1])
    assert limit.is_stable([0.2, 0.3, 0.9, 0.5])
    assert limit.is_stable([6.26, 3.58, 8.18, 0.31])
    assert limit.is_stable([5, 5, 50, 45])
    assert not limit.is_stable([5, 20, 40, 80])
    assert not limit.is_stable([5, 5])
    assert not limit.is_stable([5, math.nan, 5, 5])


# payloads

SPEC = ModelSpec((TensorSpec("x", "FP32", (-1, 3)),))


def target(wire="v2-json"):
    return Target("http://127.0.0.1:1", "m", wire)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("wire", ["v2-binary", "v2-grpc"])
def test_a_generated_payload_is_what_the_model_says_that_it_takes(datatype, wire):
    spec = ModelSpec((TensorSpec("x", datatype, (-1, -1, 3)),))
    found = payload.generated(spec, target(wire), shapes={})
    if wire == "v2-grpc":
        tensors = grpc.decode_request(found[0].body, messages).tensors
    else:
        tensors = rest_v2.decode_request(found[0].body, found[0].headers["inference-header-content-length"]).tensors
    spec.check_inputs(tensors)
    assert tensors["x"].shape == (1, payload.UNKNOWN, 3)
    assert len({one.body for one in found}) == len(found) == payload.DISTINCT


@pytest.mark.parametrize("wire", ["v1", "v2-json", "v2-binary", "v2-grpc"])
@pytest.mark.parametrize("file", ["x.npy", "x.npz", "v1.json", "v2.json"])
def test_a_file_becomes_a_request_on_every_wire(tmp_path, wire, file):
    x = np.array([[1, 2, 3]], np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    (tmp_path / "v1.json").write_text('{"instances": [{"x": [1, 2, 3]}]}')
    (tmp_path / "v2.json").write_text('{"inputs": [{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}')
    (one,) = payload.from_files([tmp_path / file], SPEC, target(wire))
    if wire == "v1":
        tensors = rest_v1.decode_request(one.body, SPEC).tensors
    elif wire == "v2-grpc":
        tensors = grpc.decode_request(one.body, messages).tensors
    else:
        tensors = rest_v2.decode_request(one.body, one.headers.get("inference-header-content-length")).tensors
    np.testing.assert_array_equal(tensors["x"], x)


def test_any_other_file_is_the_content_of_the_models_only_input(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8cat")
    spec = ModelSpec((TensorSpec("image", "BYTES", (-1,)),))
    (one,) = payload.from_files([tmp_path / "cat.jpg"], spec, target("v2-binary"))
    found = rest_v2.decode_request(one.body, one.headers["inference-header-content-length"])
    assert found.tensors["image"].tolist() == [b"\xff\xd8cat"]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("nix.json", None, "nix.json cannot be read: No such file or directory"),
        ("bad.json", b"{", "bad.json is of no use: malformed JSON"),
        ("bad.npy", b"nix", "bad.npy is of no use: "),
        ("cat.jpg", b"nix", "cat.jpg is of no use: its bytes are no FP32: expected .json, .npz or .npy"),
    ],
)
def test_a_file_that_is_no_payload_is_named_with_the_reason(tmp_path, file, content, sentence):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CannotStart) as found:
        payload.from_files([tmp_path / file], SPEC, target())
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("spec", "asked", "sentence"),
    [
        (ModelSpec(), {}, "model 'm' does not say what it takes: give payloads as files"),
        (SPEC, {"X": (1, 3)}, "--input 'X' is none of the model's; did you mean 'x'?"),
        (SPEC, {"x": (1, 4)}, "--input 'x' has shape [1, 4]: the model takes [-1, 3]"),
    ],
)
def test_a_payload_that_cannot_be_generated_says_why(spec, asked, sentence):
    with pytest.raises(CannotStart) as found:
        payload.generated(spec, target(), shapes=asked)
    assert sentence in str(found.value)


# the report


def test_a_report_is_one_page_that_needs_no_network_and_shows_what_is_broken():
    recorder = Recorder()
    for at in range(500):
        recorder.ask(at / 10)
        recorder.send(at / 10, 5)
        failed = Outcome("HTTP 503" if at % 50 == 7 else "", f"<r{at % 2}>")
        recorder.end("v1", "a&b", failed, due_s=at / 10, sent_s=at / 10, end_s=at / 10 + 0.01 + (at == 300))
    asked, sent, series = recorder.series()
    parts = {"parts": recorder.parts(), "series": series, "asked_series": asked, "sent_series": sent, "width_s": 1}
    whole = measured(asked=500, sent=500, answers=490, errors=10, duration_s=50.0, **parts)
    whole.total = recorder.total()
    page = report.html(whole, verdict.judge(whole, Slo(max_ms=100)))
    assert page.count("<svg") == 3
    for said in (
        "<b>fail</b>",
        "max ≤ 100 ms",
        "v1 a&amp;b",
        "&lt;r1&gt;",
        "HTTP 503",
        "500 of 500 requests were sent",
    ):
        assert said in page
    assert "http://" not in page.replace("http://h", "")
    ElementTree.fromstring(
        page.partition("<main>")[2].partition("</main>")[0].join(("<main>", "</main>")).replace("<br>", "")
    )


@pytest.mark.parametrize("whole", ["nothing", "one answer"])
def test_a_report_of_next_to_nothing_is_a_page_all_the_same(whole):
    recorder = Recorder()
    if whole == "one answer":
        recorder.end("v1", "n", OK, due_s=0, sent_s=0, end_s=0.01)
    asked, sent, series = recorder.series()
    found = measured(asked=0, sent=0, answers=0, series=series, asked_series=asked, sent_series=sent)
    found.total = recorder.total()
    assert "<b>no data</b>" in report.html(found, verdict.judge(found, Slo()))

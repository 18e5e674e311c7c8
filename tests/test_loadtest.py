"""`kservekit loadtest` against servers of known behaviour, and against our own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gevent
import gevent.socket
import numpy as np
import pytest
from calls import kservekit, served
from certificates import self_signed

from kservekit.loadtest import command
from kservekit.loadtest.http_wire import HttpWire, send_both
from kservekit.loadtest.payload import Payload
from kservekit.loadtest.recorder import UNNAMED
from kservekit.loadtest.target import CannotTest, Target

STUB = str(Path(__file__).with_name("load_stub.py"))


@contextlib.contextmanager
def stub(*flags):
    """The port of a load_stub.py."""
    command = [sys.executable, STUB, *map(str, flags)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield int(process.stdout.readline())
        process.stdin.close()


def loadtest(port, *flags, **options):
    target = ("--url", f"http://127.0.0.1:{port}") if port else ()
    return kservekit("loadtest", *target, "--model=m", "--quiet", *map(str, flags), **options)


def measured(port, tmp_path, *flags):
    """The run, and how the command ended."""
    file = tmp_path / "run.json"
    done = loadtest(port, f"--json={file}", *flags)
    assert file.exists(), done.stderr
    return json.loads(file.read_text()), done


@pytest.fixture
def at_any_pace(tmp_path):
    """For runs that are about something else: on a busy machine the last starts may come too late to be sent."""
    file = tmp_path / "pace.toml"
    file.write_text("achieved_rate = 0\n")
    return f"--slo={file}"


def test_a_stall_shows_in_the_open_loops_percentiles_and_a_closed_loop_misses_it(tmp_path, at_any_pace):
    """Of 200 starts in 2 s, 100 fall into a stall of 1 s, and wait from 1 s down to nothing: 1 % for 0.98 s or more."""

    def at_the_stall(name, *flags):
        folder = tmp_path / name
        folder.mkdir()
        with stub("--stall", 0.5, 1) as port:
            return measured(port, folder, at_any_pace, "--duration=2", *flags)

    with ThreadPoolExecutor() as pool:
        both = pool.submit(at_the_stall, "open", "--rate=100"), pool.submit(at_the_stall, "closed", "--think=0.005")
    (opened, done), (closed, _) = (one.result() for one in both)
    assert done.returncode == 0, done.stdout + done.stderr
    assert opened["asked"] == 200
    assert opened["sent"] == opened["answers"] > 100
    assert opened["total"]["latency_ms"]["p99"] >= 950
    assert opened["total"]["latency_ms"]["p75"] >= 400
    assert closed["total"]["latency_ms"]["max"] >= 750
    assert closed["total"]["latency_ms"]["p95"] < opened["total"]["latency_ms"]["p95"] / 2


@pytest.mark.parametrize(
    ("form", "error", "received"),
    [
        ("whole", "", 86),
        ("chunked", "", 86),
        ("until-close", "", 86),
        ("half", "connection broken", 0),
        ("no-http", "no HTTP answer", 0),
    ],
)
def test_an_answer_counts_in_every_form_that_http_has_and_half_of_one_does_not(form, error, received):
    with stub("--form", form) as port:
        wire = HttpWire(Target(f"http://127.0.0.1:{port}", "m", "v2-json", timeout_s=10))
        message = wire.prepare(Payload("x", b"{}", {}))
        for _ in range(2):
            outcome = wire.send(message, UNNAMED)
            assert (outcome.error, outcome.received) == (error, received)
        wire.close()


@pytest.mark.parametrize("head", [b"h" * 9, b"h" * 3_000_000])
def test_a_large_request_arrives_whole_whatever_the_kernel_takes_at_once(head):
    """The first call takes some of it: of the body, or of a head that is longer than anybody's."""
    body = bytes(range(256)) * 20_000
    mine, theirs = gevent.socket.socketpair()

    def send():
        with mine:
            send_both(mine, head, body)

    with theirs:
        sender = gevent.spawn(send)
        received = b"".join(iter(lambda: theirs.recv(1 << 20), b""))
        sender.get()
    assert received == head + body


def test_what_is_answered_within_the_slo_is_goodput_and_the_exit_code_is_the_verdict(tmp_path):
    slo = tmp_path / "slo.yaml"
    slo.write_text("achieved_rate: 0\np50_ms: 5 s\ngoodput_ms: 20\ngoodput: 0.5\n")
    with stub("--delay-ms", 40) as port:
        run, done = measured(port, tmp_path, "--rate=50", "--duration=1", f"--slo={slo}")
    assert done.returncode == run["verdict"]["exit_code"] == 1
    assert run["good"] == 0
    assert done.stdout.splitlines()[-1] == run["verdict"]["reason"]
    assert run["verdict"]["reason"].startswith("fail: goodput 0 %, at least 50 % (0 of 50 answered within 20 ms)")


def test_a_generator_that_cannot_keep_up_gives_no_verdict(tmp_path):
    with stub() as port:
        run, done = measured(port, tmp_path, "--rate=100000", "--duration=1")
    assert done.returncode == 3
    assert "no verdict, the generator could not keep up: achieved_rate" in done.stdout
    assert run["verdict"]["outcome"] == "generator too slow"
    assert run["sent"] < run["asked"]


def test_a_server_that_cannot_keep_up_fails(tmp_path):
    with stub("--delay-ms", 500) as port:
        run, done = measured(port, tmp_path, "--rate=200", "--duration=1", "--max-in-flight=10")
    assert done.returncode == 1
    assert "fail: achieved_rate" in done.stdout
    assert "waits for a place among those in flight" in done.stdout
    assert run["asked"] == 200
    assert run["sent"] <= 40


def test_errors_are_counted_by_status_and_end_a_run_that_cannot_be_saved(tmp_path):
    with stub("--fail", 1) as port:
        run, done = measured(port, tmp_path, "--rate=100", "--duration=30")
    assert done.returncode == 1
    assert "fail: none of" in done.stdout
    assert list(run["errors_by"]) == ["HTTP 503"]
    assert run["sent"] < 1000


def test_a_request_without_an_answer_is_an_error_after_its_time_out(tmp_path):
    with stub("--delay-ms", 60_000) as port:
        run, done = measured(port, tmp_path, "--rate=20", "--duration=0.5", "--timeout=0.2")
    assert done.returncode == 1
    assert run["errors_by"] == {"timed out": run["errors"]}
    assert run["total"]["latency_ms"]["p50"] >= 200


def test_a_canarys_split_is_held_to_what_it_is_set_to(tmp_path):
    slo, starts = tmp_path / "slo.toml", tmp_path / "starts.txt"
    slo.write_text("achieved_rate = 0\n[canary]\nrevision = 'new'\nshare = 0.5\nconfidence = 0.999\n")
    starts.write_text("".join(f"{at / 400}\n" for at in range(400)))
    with stub("--canary", 0.2) as port:
        run, done = measured(port, tmp_path, f"--shape=replay:{starts}", f"--slo={slo}")
    assert done.returncode == 1, done.stdout
    assert "fail: canary 'new' had " in done.stdout
    assert run["asked"] == 400
    assert {part["revision"] for part in run["parts"]} == {"new", "old"}


def test_two_revisions_and_two_runs_can_be_compared(tmp_path):
    with stub("--canary", 0.5, "--delay-ms", 5) as port:
        measured(port, tmp_path, "--rate=100", "--duration=0.3")
    file = str(tmp_path / "run.json")
    done = kservekit("loadtest", "compare", file, "--revisions", "old", "nix")
    assert done.returncode == 2
    assert "the run has no revision 'nix'; it has '" in done.stderr
    done = kservekit("loadtest", "compare", file, file)
    assert done.returncode == 2
    assert "before has 0 whole blocks of 5 s: expected 30 s or more" in done.stderr


def test_the_search_for_the_limit_says_what_held(tmp_path, at_any_pace):
    file = tmp_path / "limit.json"
    with stub() as port:
        done = loadtest(port, at_any_pace, "--find-limit", "--rate=50", "--duration=4", "--most=50", f"--json={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "limit: 50/s held, the most that was to be tried" in done.stdout
    assert json.loads(file.read_text())["rate"] == 50


def test_every_wire_reaches_our_own_server_and_says_its_revision(tmp_path, at_any_pace):

    def by(wire, url):
        folder = tmp_path / wire
        folder.mkdir()
        np.savez(folder / "two.npz", x=np.ones((2, 20_000 if wire == "v2-binary" else 3), np.float32))
        flags = ("--url", url, "--wire", wire, "--payload", folder / "two.npz", "--rate=50", "--duration=0.5")
        return measured(None, folder, at_any_pace, *flags)

    with served("Doubler", revision="r7") as server, ThreadPoolExecutor(2) as pool:
        http, grpc = f"http://{server.http_url}", f"grpc://{server.grpc_url}"
        urls = {"v1": http, "v2-json": http, "v2-binary": http, "v2-grpc": grpc}
        found = dict(zip(urls, pool.map(by, urls, urls.values()), strict=True))
    for wire, (run, done) in found.items():
        assert done.returncode == 0, done.stdout + done.stderr
        assert run["asked"] == 25
        assert run["answers"] == run["sent"]
        assert [(part["wire"], part["name"], part["revision"]) for part in run["parts"]] == [(wire, "two.npz", "r7")]


def test_payloads_come_from_the_models_own_metadata(tmp_path, at_any_pace):
    with served("Declared") as server:
        url = f"grpc://{server.grpc_url}"
        flags = ("--url", url, "--wire=v2-grpc", "--input=age=4", "--input=name=4", "--rate=20", "--duration=0.5")
        run, done = measured(None, tmp_path, at_any_pace, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run["answers"] == run["sent"]


def test_an_ingress_is_told_the_host_and_the_server_the_token(at_any_pace):
    with stub("--host", "m.example.com", "--token", "secret") as port:
        environment = {**os.environ, "TOKEN": "Secret"}
        flags = (at_any_pace, "--rate=20", "--duration=0.3")
        done = loadtest(port, *flags, "--host-header=m.example.com", "--token-env=TOKEN", env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        done = loadtest(port, *flags, "--host-header=m.example.com")
        assert done.returncode == 4
        assert "HTTP 401" in done.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed("m.example.com", tmp_path_factory.mktemp("tls"))


def why_not(url, **target):
    """What the command would say of this target, without the second that locust's import takes."""
    wire = HttpWire(Target(url, **{"model": "m", "wire": "v2-json", **target}))
    with contextlib.closing(wire), pytest.raises(CannotTest) as found:
        wire.probe()
    return str(found.value)


def test_tls_is_checked_for_its_issuer_and_its_name(certificate, at_any_pace):
    with stub("--certificate", certificate) as port:
        url = f"https://127.0.0.1:{port}"
        assert "TLS: self-signed certificate" in why_not(url)
        assert "TLS: IP address mismatch" in why_not(url, ca_file=str(certificate))
        flags = (f"--ca-file={certificate}", "--host-header=m.example.com", "--rate=20", "--duration=0.3")
        done = loadtest(None, "--url", url, at_any_pace, *flags)
        assert done.returncode == 0, done.stdout + done.stderr


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


FLAGS = ("--rate=20", "--duration=0.3")


def test_a_target_that_is_not_there_is_one_line_and_a_code_of_its_own():
    closed = closed_port()
    for flags in ((f"--url=http://127.0.0.1:{closed}",), (f"--url=grpc://127.0.0.1:{closed}", "--wire=v2-grpc")):
        done = loadtest(None, *FLAGS, *flags)
        assert done.returncode == 4, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "does not answer: connection refused" in done.stderr


@pytest.mark.parametrize(
    ("url", "target", "sentence"),
    [
        ("http://no-such-host.invalid", {}, "does not answer: host name not known"),
        ("http://127.0.0.1:{port}", {"model": "nix"}, "has no model 'nix' by v2-json"),
        ("https://127.0.0.1:{port}", {}, "is https:// right for this port?"),
        ("http://127.0.0.1:{port}", {"wire": "v1"}, "has no model 'm' by v1"),
    ],
)
def test_a_target_that_is_something_else_is_said_to_be_so_in_one_line(url, target, sentence):
    with stub() as port:
        said = why_not(url.format(port=port), **target)
    assert sentence in said
    assert "\n" not in said


def test_a_run_of_no_requests_is_no_pass(tmp_path):
    with stub() as port:
        run, done = measured(port, tmp_path, "--rate=0.01", "--poisson=1", "--duration=0.2")
    assert (run["sent"], done.returncode) == (0, 3)
    assert done.stdout.splitlines()[-1] == "no data: no request was sent in 0.2 s"


URL = "--url=http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((URL, "--slo={folder}/bad.toml", *FLAGS), "unknown key 'p99'; did you mean 'p99_ms'?"),
        ((URL, "--slo={folder}/nix.toml", *FLAGS), "nix.toml cannot be read: No such file"),
        (("{folder}/bare.toml", *FLAGS), "bare.toml has no payloads"),
        (("{folder}/empty.toml", *FLAGS), "payloads is []: expected at least one file"),
        (("{folder}/odd.toml", *FLAGS), "unknown key 'raet'; did you mean 'rate'?"),
        ((URL, "--input=x", *FLAGS), "--input is 'x': expected NAME=SHAPE"),
        ((URL, "--rate=5"), "no --duration"),
        ((URL, "--rate=0", "--duration=1"), "rate is 0.0: expected more than 0"),
        (("--url=127.0.0.1:1", *FLAGS), "expected such as http://"),
        (("--url=http://127.0.0.1:x", *FLAGS), "--url is 'http://127.0.0.1:x'"),
        (("--url=grpc://127.0.0.1:1", *FLAGS), "and --wire is v2-json: expected http://"),
        (FLAGS, "no --url, and no url in a profile"),
        ((URL, "--users=2", *FLAGS), "--users is a closed loop and --rate an open one"),
        ((URL, "--json=/no/such/run.json", *FLAGS), "there is no folder /no/such"),
        ((URL, "--token-env=NIX_TOKEN", *FLAGS), "that variable is not set, or empty"),
        ((URL, "--header=x", *FLAGS), "--header is 'x': expected 'NAME: VALUE'"),
        ((URL, "--ca-file=/no/such", *FLAGS), "--ca-file is '/no/such': no such file"),
        ((URL, "--find-limit", "--rate=5", "--duration=1"), "a trial of the limit takes 4 s or more"),
        (("compare", "{folder}/bad.toml"), "1 runs: expected two"),
        (("compare", "{folder}/bad.toml", "{folder}/bad.toml"), "cannot be read"),
    ],
)
def test_a_command_that_cannot_be_is_one_line_and_exit_code_2(tmp_path, flags, sentence):
    profile = "url = 'http://127.0.0.1:1'\nmodel = 'm'\n"
    (tmp_path / "bad.toml").write_text("p99 = 5\n")
    (tmp_path / "bare.toml").write_text(profile)
    (tmp_path / "empty.toml").write_text(f"{profile}payloads = []\n")
    (tmp_path / "odd.toml").write_text(f"{profile}raet = 5\n")
    arguments = [flag.format(folder=tmp_path) for flag in flags]
    said = []
    code = command.run(arguments if flags[0] == "compare" else ["--model=m", *arguments], said.append, said.append)
    assert code == 2
    assert len(said) == 1
    assert sentence in said[0]
    assert "\n" not in said[0]


def test_a_profile_says_all_of_it_and_flags_say_it_better(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 3), np.float32))
    profile = tmp_path / "profile.toml"
    with stub() as port:
        profile.write_text(
            f"url = 'http://127.0.0.1:{port}'\nmodel = 'm'\nrate = 20\nduration_s = 30\nseed = 3\n"
            "payloads = ['x.npy']\n[slo]\nachieved_rate = 0\np99_ms = '30 s'\n"
        )
        file = tmp_path / "run.json"
        done = kservekit("loadtest", str(profile), "--duration=0.5", "--quiet", f"--json={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(file.read_text())
    assert run["load"]["seed"] == 3
    assert run["parts"][0]["name"] == "x.npy"
    assert [one["name"] for one in run["verdict"]["objectives"]] == ["achieved_rate", "error_rate", "p99_ms"]


def test_ctrl_c_ends_a_run_at_once_and_is_no_verdict(tmp_path):
    with stub("--delay-ms", 60_000) as port:
        file = tmp_path / "run.json"
        command = [sys.executable, "-m", "kservekit.cli", "loadtest", f"--url=http://127.0.0.1:{port}", "--model=m"]
        command += ["--rate=20", "--duration=600", f"--json={file}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while "20" not in (line := process.stderr.readline()):  # the first second is over
                assert line
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in out
    assert json.loads(file.read_text())["interrupted"] is True


LOCUSTFILE = Path(command.__file__).with_name("locustfile.py")


def locust(port, *flags):
    arguments = ["-f", str(LOCUSTFILE), "--host", f"http://127.0.0.1:{port}", "--headless", "--only-summary", *flags]
    done = [sys.executable, "-m", "locust", *arguments]
    return subprocess.run(done, capture_output=True, text=True, timeout=60)


def test_locust_itself_takes_the_file_and_its_exit_code_is_the_verdict(tmp_path):
    slo = tmp_path / "slo.toml"
    slo.write_text("achieved_rate = 0\np50_ms = 20\n")
    json_file, html_file = tmp_path / "run.json", tmp_path / "run.html"
    files = (f"--run-json={json_file}", f"--run-html={html_file}")
    with stub("--delay-ms", 40) as port:
        done = locust(port, "--model=m", "--rate=40", "-t2s", f"--slo={slo}", *files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("fail: p50_ms ") == 1
    run = json.loads(json_file.read_text())
    assert run["answers"] == run["sent"]
    assert "v2-json  generated" in done.stderr  # locust's own table
    page = html_file.read_text()
    assert "http:" not in page.replace(run["target"]["url"], "")


def test_locusts_own_users_are_the_closed_loop_and_a_wrong_model_is_said_at_once():
    with stub("--delay-ms", 20) as port:
        done = locust(port, "--model=m", "-u3", "-r3", "-t2s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "closed loop, 3 users" in done.stdout
        done = locust(port, "--model=nix", "-t60s")
    assert done.returncode == 4
    assert "has no model 'nix' by v2-json" in done.stderr


def test_what_our_server_says_of_its_stages_stands_beside_what_was_measured(tmp_path, at_any_pace):
    with served("Doubler", server_timing="true") as server:
        np.savez(tmp_path / "x.npz", x=np.ones((1, 3), np.float32))
        for flags in (("--url", f"http://{server.http_url}"), ("--url", f"grpc://{server.grpc_url}", "--wire=v2-grpc")):
            flags += (at_any_pace, f"--payload={tmp_path / 'x.npz'}", "--rate=20", "--duration=0.3")
            run, done = measured(None, tmp_path, *flags)
            assert done.returncode == 0, done.stdout + done.stderr
            assert 0 < run["server_ms"]["total"] < run["total"]["latency_ms"]["mean"]
            assert "ms: " in done.stdout


def test_tritons_queue_and_compute_are_those_of_the_run(triton, tmp_path, at_any_pace):
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3), np.float32))
    url, by_locust = f"grpc://{triton.grpc_url}", tmp_path / "locust.json"
    flags = ("--wire=v2-grpc", "--model=doubles", f"--payload={tmp_path / 'x.npz'}", at_any_pace, "--rate=20")
    flags += ("--triton", triton.grpc_url)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(locust, 1, "--host", url, *flags, "-t1s", f"--run-json={by_locust}")
        run, done = measured(None, tmp_path, "--url", url, *flags, "--duration=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert other.result().returncode == 0, other.result().stderr
    for found in (run, json.loads(by_locust.read_text())):
        steps = ("queue", "compute_input", "compute_infer", "compute_output")
        assert set(found["server_ms"]) == {f"triton_{step}" for step in steps}
        assert found["server_ms"]["triton_compute_infer"] > 0

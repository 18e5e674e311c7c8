from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from calls import eventually, processes_with

from kservekit.errors import CannotStart
from kservekit.local.cache import new_log
from kservekit.local.triton import TritonServer
from kservekit.local.triton_log import reasons

pytest_plugins = ["kservekit.local.fixtures"]

LocalTriton = Callable[..., TritonServer]
SHM = Path("/dev/shm")

CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 2 } ]
"""
ADD_ONE = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor("y", x + 1)]) for x in inputs]
"""
NO_WEIGHTS = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("weights.bin is missing")
"""
# A person's program: it serves, says so, and ends in the way that the test wants.
PARENT = """
import sys, time
from kservekit.local.triton import TritonServer

with TritonServer(sys.argv[1]) as server:
    print(server.pid, flush=True)
    if sys.stdin.readline() == "raise\\n":
        raise ValueError("a mistake")
    while True:
        time.sleep(0.01)
"""
# What tritonserver looks like from outside; the first line of MOODS says how this start goes, and is used up.
FAKE = f"""#!{sys.executable}
import http.server, json, os, pathlib, signal, sys, threading
options = dict(argument.split("=", 1) for argument in sys.argv[1:])
moods = pathlib.Path(os.environ["MOODS"])
mood, *rest = moods.read_text().split()
moods.write_text("\\n".join(rest))
with open(os.environ["MOODS"] + ".ports", "a") as seen:
    print(options["--http-port"], options["--grpc-port"], options["--metrics-port"], file=seen)
if mood.startswith("taken"):
    port = options[mood.replace("taken-", "--") + "-port"]
    sys.exit(f"E main.cc] \\"failed to start A service: Unavailable - Socket '127.0.0.1:{{port}}' already in use \\"")
if mood == "deaf":  # as Triton is while it loads
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if mood in ("loading", "deaf") else 200)
        self.end_headers()
        self.wfile.write(json.dumps({{"name": "triton" if mood == "foreign" else options["--id"]}}).encode())
metrics = http.server.HTTPServer(("127.0.0.1", int(options["--metrics-port"])), Answers)
threading.Thread(target=metrics.serve_forever, daemon=True).start()
http.server.HTTPServer(("127.0.0.1", int(options["--http-port"])), Answers).serve_forever()
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return model(tmp_path / "models", "add_one", ADD_ONE)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Carried in the environment by all that a test starts; what is left is found by it."""
    if sys.platform != "linux":
        pytest.skip("what is left is read from /proc")
    mark = uuid4().hex
    monkeypatch.setenv("KSERVEKIT_TEST_MARK", mark)
    yield mark
    for pid in marked(mark):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def moods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tritonserver of a few lines instead of the real one, with a cache of its own for the logs."""
    (tmp_path / "tritonserver").write_text(FAKE)
    (tmp_path / "tritonserver").chmod(0o755)
    monkeypatch.setenv("KSERVEKIT_TRITONSERVER", str(tmp_path / "tritonserver"))
    monkeypatch.setenv("KSERVEKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MOODS", str(tmp_path / "moods"))
    return tmp_path / "moods"


def model(repository: Path, name: str, code: str) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG)
    (repository / name / "1/model.py").write_text(code)
    return repository


def marked(mark: str) -> dict[int, str]:
    return processes_with(f"KSERVEKIT_TEST_MARK={mark}")


def shared_memory(owner: int) -> list[str]:
    return [path.name for path in SHM.glob(f"kservekit-{owner}-*") if path.name not in _of_other_tests]


_of_other_tests: set[str] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Servers that other modules' tests started live until the session's end."""
    _of_other_tests.clear()
    _of_other_tests.update(path.name for path in SHM.glob("kservekit-*"))


def get(url: str, path: str) -> str:
    connection = http.client.HTTPConnection(url, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


def infer(server: TritonServer, x: float) -> float:
    connection = http.client.HTTPConnection(server.http_url, timeout=10)
    try:
        inputs = [{"name": "x", "datatype": "FP32", "shape": [1], "data": [x]}]
        connection.request("POST", "/v2/models/add_one/infer", json.dumps({"inputs": inputs}))
        answer = json.load(connection.getresponse())
        return float(answer["outputs"][0]["data"][0])
    finally:
        connection.close()


def test_two_at_once_serve_on_free_loopback_ports_of_their_own(local_triton: LocalTriton, repository: Path) -> None:
    first, second = local_triton(repository), local_triton(repository)
    urls = [url for server in (first, second) for url in (server.http_url, server.grpc_url, server.metrics_url)]
    assert len(set(urls)) == 6
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", url) for url in urls)
    for server in (first, second):
        assert infer(server, 41) == 42
        assert "nv_inference_request_success" in get(server.metrics_url, "/metrics")
        with socket.create_connection(("127.0.0.1", int(server.grpc_url.split(":")[1])), timeout=10):
            pass
        assert "add_one" in server.log.read_text()
        assert "riton" in server.where
    first.stop()
    assert infer(second, 1) == 2
    second.stop()


def test_stop_leaves_no_process_and_no_shared_memory_and_may_be_called_again(
    local_triton: LocalTriton, repository: Path, mark: str
) -> None:
    server = local_triton(repository)
    assert sum("triton_python_backend_stub" in command for command in marked(mark).values()) == 2
    assert server.pid in marked(mark)
    assert shared_memory(os.getpid())
    server.stop()
    assert marked(mark) == {}
    assert shared_memory(os.getpid()) == []
    server.stop()


@pytest.mark.usefixtures("local_triton")
def test_a_model_that_triton_refuses_is_named_with_its_reason_and_nothing_is_left(repository: Path, mark: str) -> None:
    model(repository, "broken", NO_WEIGHTS)
    with pytest.raises(CannotStart) as refusal, TritonServer(repository):
        pass
    first, second, *last = str(refusal.value).splitlines()
    assert first.startswith(f"Triton did not start on {repository}: the model broken (version 1) failed to load: ")
    assert "RuntimeError: weights.bin is missing" in first
    assert Path(second.removeprefix("The last lines of ").removesuffix(":")).is_file()
    assert len(last) <= 12
    assert marked(mark) == {}
    assert shared_memory(os.getpid()) == []


@pytest.mark.usefixtures("local_triton")
def test_a_python_model_without_its_code_is_told_at_once(repository: Path, mark: str) -> None:
    (repository / "bare/1").mkdir(parents=True)
    (repository / "bare/config.pbtxt").write_text(CONFIG)
    began = time.monotonic()
    with pytest.raises(CannotStart) as refusal:
        TritonServer(repository).start()
    assert time.monotonic() - began < 15
    assert f"Python model file not found in '{repository}/bare/1/model.py'" in str(refusal.value).splitlines()[0]
    assert marked(mark) == {}
    assert shared_memory(os.getpid()) == []


@pytest.mark.usefixtures("local_triton")
def test_an_argument_that_triton_does_not_know_is_told(repository: Path) -> None:
    with pytest.raises(CannotStart, match="it refuses its command line: unrecognized option '--colour=red'"):
        TritonServer(repository, arguments=["--colour=red"]).start()


def test_arguments_reach_triton(local_triton: LocalTriton, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    server = local_triton(tmp_path / "empty", arguments=["--id=mine", "--model-control-mode=explicit"])
    assert json.loads(get(server.http_url, "/v2"))["name"] == "mine"
    server.stop()


ENDINGS: dict[str, Callable[[subprocess.Popen[str]], None]] = {
    "exception": lambda parent: print("raise", file=parent.stdin, flush=True),
    "SIGTERM": lambda parent: parent.terminate(),
    "Ctrl-C": lambda parent: os.killpg(parent.pid, signal.SIGINT),
    "kill -9": lambda parent: parent.kill(),
    "kill -9 of its whole group": lambda parent: os.killpg(parent.pid, signal.SIGKILL),
}


@pytest.mark.usefixtures("local_triton")
@pytest.mark.parametrize("ending", ENDINGS)
def test_however_the_owner_ends_triton_its_stubs_and_their_memory_go_too(
    repository: Path, mark: str, ending: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(repository)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        started = marked(mark)
        assert "tritonserver" in started[pid]
        assert sum("triton_python_backend_stub" in command for command in started.values()) == 2, started
        assert sum("warden.py" in command for command in started.values()) == 1, started
        assert shared_memory(owner.pid)
        ENDINGS[ending](owner)
        owner.wait(60)
    assert eventually(lambda: not marked(mark) and not shared_memory(owner.pid)), (
        marked(mark),
        shared_memory(owner.pid),
    )


@pytest.mark.usefixtures("local_triton")
def test_nothing_is_left_when_the_warden_itself_is_killed(repository: Path, mark: str) -> None:
    with TritonServer(repository):
        (warden,) = (pid for pid, command in marked(mark).items() if "warden.py" in command)
        os.kill(warden, signal.SIGKILL)
    assert eventually(lambda: not marked(mark)), marked(mark)
    assert eventually(lambda: not shared_memory(os.getpid())), shared_memory(os.getpid())


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_that_was_asked_for_and_is_taken_is_named_before_anything_starts(
    repository: Path, moods: Path, option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotStart, match=f"{option}={port}: this port is taken on 127.0.0.1; give another"):
            TritonServer(repository, **{option: port}).start()
    assert not (moods.parent / "cache").exists()


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"http_port": 70000}, "http_port=70000: this port cannot be used"),
        ({"http_port": 0, "grpc_port": -1}, "grpc_port=-1: this port cannot be used"),
        ({"http_port": 23456, "grpc_port": 23456}, "grpc_port=23456: this port is given twice"),
    ],
)
def test_ports_that_make_no_sense_are_named(repository: Path, moods: Path, ports: dict[str, int], message: str) -> None:
    with pytest.raises(CannotStart, match=message):
        TritonServer(repository, **ports).start()


def test_a_port_that_was_asked_for_is_used(repository: Path, moods: Path) -> None:
    moods.write_text("serves")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with TritonServer(repository, http_port=port) as server:
        assert server.http_url == f"127.0.0.1:{port}"


@pytest.mark.parametrize("service", ["http", "grpc", "metrics"])
def test_a_port_of_its_own_choice_that_was_taken_meanwhile_is_replaced(
    repository: Path, moods: Path, service: str
) -> None:
    moods.write_text(f"taken-{service} taken-{service} serves")
    with TritonServer(repository) as server:
        tried = [line.split() for line in Path(f"{moods}.ports").read_text().splitlines()]
        assert len(tried) == 3
        assert server.http_url == f"127.0.0.1:{tried[2][0]}"
        assert tried[0] != tried[1]


def test_after_three_tries_the_taken_address_is_told(repository: Path, moods: Path) -> None:
    moods.write_text("taken-grpc taken-grpc taken-grpc serves")
    with pytest.raises(CannotStart, match=r"Triton did not start on .*127\.0\.0\.1:\d+ is taken"):
        TritonServer(repository).start()
    assert moods.read_text() == "serves"


def test_a_port_that_was_asked_for_is_never_replaced(repository: Path, moods: Path) -> None:
    moods.write_text("taken-http serves")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with pytest.raises(CannotStart, match=rf"127\.0\.0\.1:{port} is taken"):
        TritonServer(repository, http_port=port).start()
    assert moods.read_text() == "serves"


# The interrupt may come between the opening of the log and the `with` that closes it: then the collector closes it.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO .*mode='rb':pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("mood", ["loading", "deaf"])
def test_an_interrupted_start_leaves_nothing_and_waits_for_nothing(
    repository: Path, moods: Path, mark: str, mood: str
) -> None:
    moods.write_text(mood)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            TritonServer(repository).start()
        assert time.monotonic() - began < 5
    finally:
        signal.signal(signal.SIGALRM, before)
    assert marked(mark) == {}


def test_one_that_ended_by_itself_is_told_by_check_alive(repository: Path, moods: Path, mark: str) -> None:
    moods.write_text("serves")
    with TritonServer(repository) as server:
        server.check_alive()
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: server.pid not in marked(mark))
        with pytest.raises(CannotStart, match=f"Triton on {repository} ended with code -9; the last lines of "):
            eventually(server.check_alive, seconds=10)


@pytest.mark.parametrize("mood", ["loading", "foreign"])
def test_ready_is_only_what_this_very_triton_says(repository: Path, moods: Path, mark: str, mood: str) -> None:
    moods.write_text(mood)
    with pytest.raises(CannotStart, match=r"it was not ready within 0\.5 s"):
        TritonServer(repository, start_timeout_s=0.5).start()
    assert marked(mark) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "cannot be read: No such file or directory; expected a folder with one folder per model"),
        ("file", "cannot be read: Not a directory; expected a folder with one folder per model"),
        ("empty", "has no model; expected one folder per model"),
        ("a b", "has a path that Triton's Python backend cannot open"),
    ],
)
def test_a_repository_that_cannot_be_served_is_said_at_once(
    tmp_path: Path, moods: Path, name: str, message: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    model(tmp_path / "a b", "add_one", ADD_ONE)
    with pytest.raises(CannotStart, match=message) as refusal:
        TritonServer(tmp_path / name).start()
    assert str(tmp_path / name) in str(refusal.value)
    assert not (tmp_path / "cache").exists()


def test_only_the_newest_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSERVEKIT_CACHE_DIR", str(tmp_path))
    with subprocess.Popen(["true"]) as ended:
        pass
    old = [tmp_path / "logs" / f"triton-20200101-0000{second:02}-{ended.pid}-1.log" for second in range(30)]
    old[0].parent.mkdir()
    for log in old:
        log.touch()
    new_log("triton", 1).touch()
    kept = sorted((tmp_path / "logs").iterdir())
    assert len(kept) == 20
    assert kept[:19] == old[-19:]


def test_a_log_is_kept_as_long_as_its_owner_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSERVEKIT_CACHE_DIR", str(tmp_path))
    (tmp_path / "logs").mkdir()
    # Ours, and those of a process of somebody else's, perhaps.
    of_the_living = [new_log("server", number) for number in range(30)]
    of_the_living.append(tmp_path / "logs/server-20200101-000000-1-1.log")
    for log in of_the_living:
        log.touch()
    new_log("server", 99)
    assert sorted((tmp_path / "logs").iterdir()) == sorted(of_the_living)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "E1123 19:27:04.8 5926 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: SyntaxError: "
            "invalid syntax (model.py, line 1)\\n\\nAt:\\n  /r/m/1/model.py(3): <module>\\n  "
            '<frozen importlib._bootstrap>(241): _call_with_frames_removed\\n"',
            "the model m (version 1) failed to load: Internal: SyntaxError: invalid syntax (model.py, line 1) "
            "At: /r/m/1/model.py(3): <module>",
        ),
        (
            "E1123 19:27:08.8 6057 model_repository_manager.cc:724] \"failed to load model 'm': at least one version "
            "must be available under the version policy of model 'm'\"",
            "the model m failed to load: at least one version must be available under the version policy of model 'm'",
        ),
        (
            "E1123 19:27:10.8 6081 model_repository_manager.cc:1460] \"Poll failed for model directory 'm': "
            'failed to read text proto from r/m/config.pbtxt"',
            "the model m was refused: failed to read text proto from r/m/config.pbtxt",
        ),
        (
            '[libprotobuf ERROR text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:9: Expected ":"',
            'a config.pbtxt cannot be read, at line:column 1:9: Expected ":"',
        ),
        (
            'E1123 19:26:27.2 5478 main.cc:257] "failed to start HTTP service: Unavailable - '
            "Socket '127.0.0.1:18200' already in use \"",
            "the HTTP address 127.0.0.1:18200 is taken",
        ),
        (
            "tritonserver: error while loading shared libraries: libnuma.so.1: cannot open shared object file: "
            "No such file or directory",
            "the library libnuma.so.1 cannot be loaded: cannot open shared object file: No such file or directory",
        ),
    ],
)
def test_the_reason_is_read_from_what_triton_writes(line: str, sentence: str) -> None:
    general = "error: creating server: Internal - failed to load all models\n"
    assert reasons(f'I1123 19:27:04.8 1 server.cc:1] ""\n{line}\n{line}\n{general}') == [sentence]
    assert reasons(general) == ["failed to load all models"]


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
def test_without_a_triton_the_fixture_skips_unless_servers_are_required(
    tmp_path: Path, required: str, outcome: str
) -> None:
    (tmp_path / "test_it.py").write_text(
        "pytest_plugins = ['kservekit.local.fixtures']\ndef test_it(local_triton): local_triton('models')\n"
    )
    # A cache path that Triton cannot live with stands for any machine that has none.
    settings = {"KSERVEKIT_CACHE_DIR": str(tmp_path / "a b"), "PATH": "", "KSERVEKIT_REQUIRE_SERVERS": required}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "KSERVEKIT_TRITONSERVER": "", **settings},
        capture_output=True,
        text=True,
    )
    assert outcome in ran.stdout
    assert "KSERVEKIT_TRITONSERVER" in ran.stdout

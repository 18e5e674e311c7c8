"""kservekit demo, as a user runs it: real Triton, real processes, real photographs."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from calls import eventually, kservekit, processes_with

from kservekit.local import demo, demo_report, photos
from kservekit.local.cache import cache_folder
from kservekit.local.server import LocalServer
from kservekit.predictors.repository import ONNX_IN_TRITON, write_model

COMMAND = [sys.executable, "-m", "kservekit.cli", "demo"]


class Running:
    """A demo, and a way to find every process that came of it."""

    def __init__(self, *arguments, **environment):
        self.token = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env={**os.environ, **environment, "DEMO_TOKEN": self.token},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.told = []
        self.line = threading.Condition()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self):
        for line in self.process.stderr:
            with self.line:
                self.told.append(line)
                self.line.notify_all()

    def wait_for(self, text):
        with self.line:
            assert self.line.wait_for(lambda: any(text in line for line in self.told), timeout=120), self.told

    def end(self, number):
        """Sends the signal to demo alone; its exit code and its screen once it has ended."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self):
        """The same, once it has ended by itself; all that it said is in `told`."""
        code = self.process.wait(60)
        self.listener.join(10)  # stderr is its own to read
        self.process.stderr.close()
        with self.process.stdout as screen:
            return code, screen.read()

    def left(self):
        return processes_with(f"DEMO_TOKEN={self.token}")


@pytest.fixture(scope="module")
def needs_triton(local_triton):
    """Skips, or fails in CI, where there is no Triton; and installs it, once for all tests here."""


def test_every_wire_answers_agrees_and_is_right_on_the_real_triton(needs_triton):
    token = uuid.uuid4().hex
    done = kservekit("demo", "--engine", "triton", env={**os.environ, "DEMO_TOKEN": token})
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes_with(f"DEMO_TOKEN={token}") == {}
    screen = done.stdout
    assert "served by Triton" in screen
    assert "All 4 wires answered and agreed, and 4 of 4 photographs are right." in screen
    for wire in ("v1 REST", "v2 REST JSON", "v2 REST binary", "v2 gRPC"):
        assert re.search(rf"^  {wire} +20 +\d+\.\d +\d+\.\d  agree$", screen, re.M)
    assert re.search(r"^  tiger cat +\d\d\.\d % █+ +espresso +9\d\.\d % █+$", screen, re.M)
    # Triton's own statistics are part of the hop, and the hop of the whole.
    compute, hop, total = (
        float(re.search(rf"{name} +(\d+\.\d\d)", screen)[1])
        for name in ("of which Triton's compute", "hop to the predictor and back", "in all, at the transformer")
    )
    assert 0 < compute < hop < total


def test_kept_it_answers_the_curl_line_and_ctrl_c_stops_all(needs_triton):
    running = Running("--keep")
    try:
        running.wait_for("running until Ctrl-C")
        lines = []
        for line in running.process.stdout:
            lines.append(line)
            if line.endswith("s in all.\n"):
                break
        shown = re.search(r"by hand.*?\n  (.*\n.*:predict)\n", "".join(lines))[1]
        reply = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True)
        assert '"predictions":[{' in reply.stdout
        assert "tiger cat" in reply.stdout
    finally:
        code, _ = running.end(signal.SIGINT)
    assert code == 0
    assert running.left() == {}


@pytest.mark.parametrize("stage", ["[2/4]", "[3/4]", "[4/4]"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_at_any_stage_leaves_nothing_running(needs_triton, stage, number):
    running = Running()
    running.wait_for(stage)
    code, screen = running.end(number)
    assert code == (130 if number == signal.SIGINT else -number)
    assert "All 4 wires" not in screen
    assert not any("Traceback" in line for line in running.told), running.told
    assert eventually(lambda: not running.left()), running.left()


def test_without_triton_onnx_runtime_serves_the_same_model_and_the_demo_says_why(tmp_path):
    # A folder with a space is one that Triton's Python backend cannot use.
    (tmp_path / "a cache").mkdir()
    photos.prepare(cache_folder() / "demo", print)
    (tmp_path / "a cache" / "demo").symlink_to(cache_folder() / "demo")
    done = kservekit("demo", env={**os.environ, "KSERVEKIT_CACHE_DIR": str(tmp_path / "a cache")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has a path that Triton's Python backend cannot use" in done.stderr
    assert "so ONNX Runtime serves the same model in the predictor's process" in done.stderr
    assert "served by ONNX Runtime" in done.stdout
    assert "All 4 wires answered and agreed, and 4 of 4 photographs are right." in done.stdout


def test_where_triton_was_asked_for_and_cannot_be_started_the_demo_fails_with_one_message():
    done = kservekit("demo", env={**os.environ, "KSERVEKIT_TRITONSERVER": "/no/such/tritonserver"})
    assert done.returncode == 1
    assert "kservekit demo: KSERVEKIT_TRITONSERVER is '/no/such/tritonserver': expected the path" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_answer_is_exit_code_1(monkeypatch, capsys):
    prepare = photos.prepare

    def with_a_false_expectation(folder, progress):
        material = prepare(folder, progress)
        first, *others = material.photos
        wrong = photos.Photo(first.path, ("goldfish",), first.title, first.credit)
        return photos.PhotoDemo(material.model, material.labels, (wrong, *others))

    monkeypatch.setattr(photos, "prepare", with_a_false_expectation)
    assert demo.run(engine="onnx", say=lambda line: None) == 1
    screen = capsys.readouterr().out
    assert "WRONG, expected goldfish" in screen
    assert "WRONG: Chelsea the cat is 'tiger cat'" in screen
    assert "All 4 wires" not in screen


def a_report():
    photo = photos.Photo(Path("a.png"), ("a",), "A", "")
    results = [demo_report.Result(photo, [("a", 0.9)], True)] * 2
    stages = dict.fromkeys(
        ("read", "decode_image", "resize", "normalize", "predictor", "from_tensors", "write", "total"), 1.0
    )
    wires = [demo_report.Wire("v1", [1.0], True), demo_report.Wire("v2", [1.0], False)]
    return demo_report.Report("an engine", results, wires, stages, "127.0.0.1:1", "m")


def test_a_wire_that_does_not_agree_is_said_and_fails():
    report = a_report()
    assert not report.right
    assert "WRONG: v2 does not agree with v1" in demo_report.screen(report)


def test_where_a_port_is_dead_no_curl_line_is_shown():
    report = a_report()
    assert "curl" not in demo_report.screen(report)
    assert "by hand: `kservekit demo --keep` leaves it running" in demo_report.screen(report)
    report.kept = True
    assert "curl -s -d @- http://127.0.0.1:1/v1/models/m:predict" in demo_report.screen(report)


@pytest.mark.parametrize("engine", ["triton", "predictor", "transformer"])
def test_kept_it_says_which_process_ended_and_fails(needs_triton, engine):
    running = Running("--keep")
    running.wait_for("running until Ctrl-C")
    word, told = {
        "triton": ("bin/tritonserver", "Triton on "),
        "predictor": ("TritonPredictor", "(kservekit.predictors.triton:TritonPredictor)"),
        "transformer": ("ImageTransformer", "(kservekit.transformers.image:ImageTransformer)"),
    }[engine]
    (pid,) = (pid for pid, command in running.left().items() if word in command)
    os.kill(pid, signal.SIGKILL)
    code, _ = running.ended()
    assert code == 1
    (line,) = (line for line in running.told if line.startswith("kservekit demo: "))
    assert told in line
    assert "ended with code -9" in line
    assert running.left() == {}


def test_in_ascii_the_bars_are_number_signs():
    done = kservekit("demo", "--engine", "onnx", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  tiger cat +\d\d\.\d % #+ +espresso +9\d\.\d % #+$", done.stdout, re.M)
    assert "All 4 wires answered and agreed" in done.stdout


def test_a_full_disk_under_the_answer_is_one_sentence(needs_triton):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--engine", "onnx"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "kservekit: the output cannot be written: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_ends_it_quietly(stream):
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    token = uuid.uuid4().hex
    done = subprocess.run(
        [*COMMAND, "--engine", "onnx"],
        **{stream: writer, other: subprocess.PIPE},
        text=True,
        timeout=120,
        env={**os.environ, "DEMO_TOKEN": token},
    )
    os.close(writer)
    assert done.returncode == 1
    said = (getattr(done, other) or "").splitlines()
    assert [line for line in said if not line.startswith("[")] == []
    assert processes_with(f"DEMO_TOKEN={token}") == {}


def test_a_proxy_is_not_for_loopback(needs_triton):
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1")
    environment = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"} | proxies
    done = kservekit("demo", "--engine", "triton", env=environment, timeout=60)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_while_triton_starts_is_heard_at_once(needs_triton):
    running = Running("--engine", "triton")
    assert eventually(lambda: any("bin/tritonserver" in command for command in running.left().values()))
    began = time.monotonic()
    code, _ = running.end(signal.SIGINT)
    assert time.monotonic() - began < 3
    assert (code, running.told[-1]) == (130, "stopping\n")
    assert running.left() == {}


def test_two_at_once_on_one_cache_do_not_disturb_each_other(needs_triton):
    both = [Running("--engine", "triton") for _ in range(2)]
    for running in both:
        code, _ = running.ended()
        assert code == 0, running.told


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language, containing):
    (found,) = (text for text in re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S) if containing in text)
    return found.replace("~/.cache/kservekit", str(cache_folder()))


def command(containing):
    """The settings, the target and the flags of a README's `kservekit serve`."""
    words = shlex.split(block("sh", containing).replace("\\\n", " "))
    program = words.index(".venv/bin/kservekit")
    assert words[program + 1] == "serve"
    return dict(word.split("=", 1) for word in words[:program]), words[program + 2], words[program + 3 :]


def ports(flags):
    return [flags[flags.index(name) + 1] for name in ("--http_port", "--grpc_port")]


def test_the_readmes_photo_service_answers_its_curl_lines_with_labels(needs_triton, tmp_path):
    # As the demo does.
    files = {"model.py": ONNX_IN_TRITON, "model.onnx": photos.prepare(cache_folder() / "demo", print).model}
    write_model(cache_folder() / "demo/repository", demo.MODEL, demo.PHOTO_MODEL, files, max_batch_size=8)
    predictor_settings, predictor_target, predictor_flags = command("TritonPredictor")
    settings, target, flags = command("ImageTransformer")
    numbers = ["8001", *ports(predictor_flags), *ports(flags)]
    assert len(set(numbers)) == 5
    assert predictor_settings == {"KSERVEKIT_TRITON_URL": "localhost:8001"}
    assert f"localhost:{numbers[1]}" in flags

    (tmp_path / "photos.py").write_text(block("python", "TritonServer").replace("8001", "None"))
    with ExitStack() as stack:
        triton = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-u", tmp_path / "photos.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(triton.terminate)
        url = triton.stdout.readline().split()[0]
        predictor = LocalServer(
            predictor_target, *without_ports(predictor_flags), settings={"KSERVEKIT_TRITON_URL": url}
        )
        stack.enter_context(predictor)
        flags = [predictor.http_url if flag == f"localhost:{numbers[1]}" else flag for flag in without_ports(flags)]
        transformer = stack.enter_context(LocalServer(target, *flags, settings=settings))
        for line in ("v1/models/photo:predict", "v2/models/photo/infer"):
            assert line in block("sh", "picture()")
        script = block("sh", "picture()").replace(f"localhost:{numbers[3]}", transformer.http_url)
        done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True)
        assert done.stdout.count('"espresso"') == 2, done.stdout


def without_ports(flags):
    return [flag for index, flag in enumerate(flags) if "_port" not in flag and "_port" not in flags[index - 1]]

"""The Dockerfile and what goes into it; with IMAGE_BASE naming a base image, the images are built and run as well."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calls import eventually
from onnx_files import write_doubles

from kservekit import __version__
from kservekit.local.server import LocalServer

ROOT = Path(__file__).parent.parent
SERVING = ["cpu", "gpu", "edge"]
TARGETS = [*SERVING, "loadtest"]


def stages():
    """Name to base and instructions, each an (INSTRUCTION, arguments)."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found, current = {}, []
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, arguments = line.partition(" ")
        if word == "FROM":
            base, _, name = arguments.partition(" AS ")
            found[name] = base, (current := [])
        else:
            current.append((word, re.sub(r"\s+", " ", arguments)))
    return found


def setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def shipped(target):
    """All instructions that make the layers and the configuration of an image, its base stage's first."""
    base, own = stages()[target]
    return (shipped(base) if base in stages() else []) + own


def last(target, word):
    return [arguments for name, arguments in shipped(target) if name == word][-1]


def healthcheck(target):
    return json.loads(last(target, "HEALTHCHECK").partition(" CMD ")[2])


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_the_default_is_the_image_for_cpus():
    assert list(stages())[-1] == "cpu"


def test_all_stages_stand_on_the_one_base_that_a_build_may_pin():
    assert {base for base, _ in stages().values()} - set(stages()) == {"${BASE}"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_server_runs_as_a_user_that_a_cluster_knows_not_to_be_root(target):
    """runAsNonRoot refuses a name: only a number says it."""
    user, group = last(target, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_installed_in_the_stages_that_are_shipped(target):
    assert [arguments for name, arguments in shipped(target) if name == "RUN" and not arguments.startswith("[")] == []
    for name, arguments in shipped(target):
        if name in ("COPY", "ADD"):
            assert arguments.startswith("--from=")


@pytest.mark.parametrize("target", TARGETS)
def test_what_follows_the_images_name_is_given_to_what_it_is_for(target):
    assert json.loads(last(target, "ENTRYPOINT")) == ["kservekit", "serve" if target in SERVING else "loadtest"]


def test_the_healthcheck_tells_a_server_that_lives_from_one_that_is_not_there(tmp_path):
    python, *check = healthcheck("cpu")
    assert python == "python"
    with LocalServer("kservekit.predictors.onnx:OnnxPredictor", settings=model(tmp_path)) as server:
        port = server.http_url.rpartition(":")[2]
        command = [sys.executable, *(part.replace("8080", port) for part in check)]
        assert subprocess.run(command).returncode == 0
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_the_first_process_of_a_container_hears_sigterm_while_it_is_still_importing(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, threading\npathlib.Path('importing').touch()\nthreading.Event().wait()\n"
    )
    alone = ["unshare", "--pid", "--fork", "--kill-child"]
    command = [*alone, sys.executable, "-m", "kservekit.cli", "serve", "slow.py:Slow"]
    with subprocess.Popen(command, cwd=tmp_path) as outer:
        try:
            assert eventually((tmp_path / "importing").exists)
            first = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
            os.kill(first, signal.SIGTERM)
            assert eventually(lambda: outer.poll() is not None), "it did not end"
        finally:
            outer.kill()
    assert outer.returncode == 128 + signal.SIGTERM


def test_no_layer_and_no_setting_keeps_a_secret():
    for _, instructions in stages().values():
        for name, arguments in instructions:
            if name in ("ARG", "ENV"):
                assert not re.search(r"(?i)passw|secret|token|credential|api_?key|index_url|://", arguments)
            if name == "RUN" and re.search(r"\bpip\b.* (install|wheel)\b", arguments):
                assert "--mount=type=secret,id=pip.conf,target=/pip.conf" in arguments


def test_every_extra_that_is_installed_is_one_of_ours():
    """pip installs a name that it does not know as nothing, with a warning."""
    text = (ROOT / "Dockerfile").read_text()
    named = re.findall(r"whl\)\[([a-z,-]+)\]", text) + re.findall(r"ARG GPU_EXTRAS=(\S+)", text)
    assert len(named) == len(TARGETS)
    assert set(",".join(named).split(",")) <= set(setup_cfg()["options.extras_require"])


def test_the_build_is_given_what_the_wheel_is_made_of_and_nothing_else():
    package_dir = setup_cfg()["options"]["package_dir"].strip().splitlines()
    rooms = {line.partition(" = ")[2].partition("/")[0] for line in package_dir}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == rooms | {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
    }


def model(folder):
    """An ONNX file, y = x + x, and the setting that has it served."""
    return {"KSERVEKIT_ONNX_MODEL_PATH": str(write_doubles(folder / "model.onnx", shape=("n", 3)))}


@pytest.fixture(scope="module")
def tool():
    """podman or docker, where a base is named: a build takes minutes, a package index and gigabytes."""
    if "IMAGE_BASE" not in os.environ:
        pytest.skip(
            "IMAGE_BASE is not set: expected a base image to build on, such as docker.io/library/python:3.13-slim"
        )
    found = shutil.which("podman") or shutil.which("docker")
    if found is None:
        pytest.fail("IMAGE_BASE is set, and neither podman nor docker is on PATH to build on it")

    def run(*arguments, check=True):
        done = subprocess.run([found, *arguments], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module", params=["edge", "cpu"])
def image(request, tool):
    tag = f"localhost/kservekit-test:{request.param}"
    base = f"BASE={os.environ['IMAGE_BASE']}"
    form = ["--format", "docker"] if "podman" in tool("--version").stdout else []  # OCI's own has no healthcheck
    tool("build", *form, "--network", "host", "--target", request.param, "--build-arg", base, "--tag", tag, str(ROOT))
    return tag


@pytest.fixture
def container(tool, image, tmp_path):
    """A server with no rights, no network, and nothing to write to but /tmp."""
    model(tmp_path)
    tmp_path.chmod(0o755)
    limits = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    mount = ["--network", "none", "--volume", f"{tmp_path}:/mnt/models:ro", "--env", "KSERVEKIT_LAME_DUCK_MS=1000"]
    target = ["kservekit.predictors.onnx:OnnxPredictor", "--model_name", "doubles"]
    name = tool("run", "--detach", *limits, *mount, image, *target).stdout.strip()
    yield name
    tool("rm", "--force", name)


ASK = """
import json, sys, urllib.request
body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3.5]}]}
request = urllib.request.Request("http://127.0.0.1:8080/v2/models/doubles/infer", json.dumps(body).encode())
print(urllib.request.urlopen(request).read().decode())
"""

READY = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v2/health/ready')"


def test_the_built_image_says_its_version(tool, image):
    done = tool("run", "--rm", "--entrypoint", "kservekit", image, "--version")
    assert done.stdout.strip() == f"kservekit {__version__}"


def test_the_built_image_serves_a_model_and_ends_in_order(tool, container):
    def inside(*command):
        return tool("exec", container, *command, check=False)

    assert eventually(lambda: inside("python", "-c", READY).returncode == 0), tool("logs", container).stderr
    assert inside(*healthcheck("cpu")).returncode == 0
    answer = json.loads(inside("python", "-c", ASK).stdout)
    assert np.array_equal(answer["outputs"][0]["data"], [2, 4, 7])
    assert inside("id", "-u").stdout.strip() == "1000"
    assert inside("touch", "/app/x").returncode != 0
    assert inside("ls", "-A", "/tmp").stdout == ""
    tool("kill", "--signal", "TERM", container)
    assert tool("wait", container).stdout.strip() == "0"
    logs = tool("logs", container)
    assert "SIGTERM: not ready from now on" in logs.stdout + logs.stderr

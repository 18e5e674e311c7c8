"""The README's promises, typed as they stand there."""

import configparser
import dataclasses
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from calls import http

from kservekit import config, errors
from kservekit.local.process import GuardedProcess
from kservekit.local.server import LocalServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language, containing):
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)
    (found,) = (text for text in blocks if containing in text)
    return found


@pytest.fixture
def doubler(tmp_path):
    code = block("python", "class Doubler")
    assert len(code.splitlines()) <= 12
    (tmp_path / "doubler.py").write_text(code)
    return tmp_path / "doubler.py"


def check_the_curl_lines(address):
    """Each curl line of the README, sent to `address`, is answered with the line that is shown for it."""
    lines = [shlex.split(line) for line in block("sh", "serve doubler.py").splitlines() if line.startswith("curl")]
    answers = block("json", "doubler").splitlines()
    assert len(lines) == len(answers) == 2
    for words, expected in zip(lines, answers, strict=True):
        url, body = words[2], words[words.index("-d") + 1]
        # curl -d calls it a form
        form = "application/x-www-form-urlencoded"
        reply = http(address, url.removeprefix("localhost:8080"), body.encode(), content_type=form)
        assert reply.body.decode() == expected


def test_the_first_predictor_is_served_by_the_command_beside_it(doubler):
    _, _, target, *flags = shlex.split(block("sh", "serve doubler.py").splitlines()[0])
    assert target == doubler.name + ":Doubler"
    with LocalServer(f"{doubler.parent}/{target}", *flags, model_name="doubler") as server:
        check_the_curl_lines(server.http_url)


def test_the_first_predictor_serves_itself(doubler):
    server = LocalServer("", model_name="doubler")  # for its free ports
    http_port, grpc_port = (url.split(":")[1] for url in (server.http_url, server.grpc_url))
    command = [
        sys.executable,
        str(doubler),
        "--model_name=doubler",
        f"--http_port={http_port}",
        f"--grpc_port={grpc_port}",
    ]
    environment = {**os.environ, "KSERVEKIT_HOST": "127.0.0.1"}
    with GuardedProcess(command, env=environment, log=doubler.with_suffix(".log")) as process:
        server.process = process
        server.wait_until_ready()
        check_the_curl_lines(server.http_url)


def test_every_setting_is_in_the_table_with_its_default():
    for settings in config.ALL:
        for field in dataclasses.fields(settings):
            name = config.variable(settings, field.name)
            row = next((line for line in README.splitlines() if line.startswith("|") and f"`{name}`" in line), None)
            assert row, f"{name} is not in the README"
            if isinstance(field.default, (int, str)) and field.default not in ("", True, False):
                assert f"{field.default}" in row, f"{name}'s default {field.default!r} is not in its row"
    for name in config.NOT_IN_A_CLASS:
        assert f"`{name}`" in README
    for name in set(re.findall(r"KSERVEKIT_[A-Z_]+", README)):
        known = {config.variable(item, field.name) for item in config.ALL for field in dataclasses.fields(item)}
        assert name in known | set(config.NOT_IN_A_CLASS), f"the README has {name}, and nothing reads it"


def test_every_status_in_the_table_of_errors_is_the_codes():
    rows = re.findall(r"^\| (\d{3}) \| ([A-Z_]+) \|", README, re.M)
    assert rows
    for status, code in rows:
        assert (int(status), code) in {(error.http, error.grpc) for error in errors.ALL}


def test_every_link_and_every_room_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for room in re.findall(r"^\| `([a-z/]+/)`", README, re.M):
        assert (ROOT / room).is_dir(), room
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    rooms = dict(line.split(" = ") for line in cfg["options"]["package_dir"].strip().splitlines())
    for package in cfg["options"]["packages"].split():
        near = max((room for room in rooms if f"{package}.".startswith(f"{room}.")), key=len)
        folder = rooms[near] + package.removeprefix(near).replace(".", "/")
        assert (ROOT / folder / "__init__.py").is_file(), folder
        assert f"`{folder}/`" in README, f"{folder}/ is not on the README's map"

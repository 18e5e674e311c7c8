"""The command line, as somebody meets it who makes a mistake."""

import os
import re
import subprocess
import sys

import pytest
from calls import kservekit

from kservekit.errors import CannotStart
from kservekit.local.server import LocalServer
from kservekit.serving import Predictor
from kservekit.target import load_target

GOOD = "from kservekit.serving import Predictor, TensorSpec\nclass Good(Predictor):\n    pass\n"

AT_IMPORT = {
    "a syntax error": (
        "x = 1\ny = (\n",
        "{file} cannot be imported: SyntaxError: '(' was never closed (mine.py:2)",
    ),
    "an indentation error": (
        "def f():\npass\n",
        "{file} cannot be imported: IndentationError: expected an indented block after function definition on line 1 "
        "(mine.py:2)",
    ),
    "an exception": (
        "import os\n\ndef key():\n    return {}['KEY']\n\nkey()\n",
        "{file} cannot be imported: KeyError: 'KEY' (mine.py:4)",
    ),
    "an exception in a library": (
        "import json\njson.loads('nix')\n",
        "{file} cannot be imported: JSONDecodeError: Expecting value: line 1 column 1 (char 0) (mine.py:2)",
    ),
    "an exception of our own code": (
        "from kservekit.serving import TensorSpec\n\nTensorSpec()\n",
        "(mine.py:3)",
    ),
    "a name that is not there": (
        "import os\nfrom kservekit.serving import Nix\n",
        "{file} cannot be imported: ImportError: cannot import name 'Nix' from 'kservekit.serving' (mine.py:2)",
    ),
    "a module that is not there": (
        "import os\nimport no_such_module\n",
        "{file} needs the module 'no_such_module', which is not installed (mine.py:2)",
    ),
    "an exception in a module beside it": (
        "import beside\n",
        "{file} cannot be imported: ValueError: two lines (beside.py:1)",
    ),
    "an end of the program": (
        "import sys\nsys.exit(3)\n",
        "{file} ends the program when it is imported (exit code 3) (mine.py:2); put what is not for import under",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where one works, with sys.path and sys.modules put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("mine", "beside") or name.startswith("mine."):
            del sys.modules[name]


def refusal(target):
    with pytest.raises(CannotStart) as found:
        load_target(target)
    return str(found.value)


@pytest.mark.parametrize("form", ["mine.py", "mine"])
@pytest.mark.parametrize("mistake", AT_IMPORT)
def test_a_target_that_cannot_be_imported_is_one_sentence_with_its_own_line(folder, mistake, form):
    code, sentence = AT_IMPORT[mistake]
    (folder / "mine.py").write_text(code)
    (folder / "beside.py").write_text("raise ValueError('two\\nlines')\n")
    said = refusal(f"{form}:Good")
    assert sentence.format(file=form) in said
    assert "\n" not in said


def test_in_a_package_the_line_is_that_of_the_module_that_failed(folder):
    (folder / "mine").mkdir()
    (folder / "mine/__init__.py").write_text("from mine import model\n")
    (folder / "mine/model.py").write_text("import os\n1 / 0\n")
    assert refusal("mine:Good") == "mine cannot be imported: ZeroDivisionError: division by zero (mine/model.py:2)"


MAKING = {
    "a class that is no model": (
        "class X:\n    def __init__(self, name):\n        pass\n",
        "is a class that is no model: expected a subclass of kservekit.serving.Predictor or Transformer, or of",
    ),
    "other arguments": (
        "class X(Predictor):\n    def __init__(self, name, weights):\n        super().__init__(name)\n",
        "cannot be called with the model's name alone: missing a required argument: 'weights'; expected one argument,",
    ),
    "no argument": (
        "class X(Predictor):\n    def __init__(self):\n        super().__init__('x')\n",
        "cannot be called with the model's name alone: too many positional arguments; expected one argument,",
    ),
    "an exception": (
        "class X(Predictor):\n    def __init__(self, name):\n        open('/no/weights')\n",
        "raised FileNotFoundError: [Errno 2] No such file or directory: '/no/weights' (mine.py:4)",
    ),
    "a TypeError of its own": (
        "class X(Predictor):\n    def __init__(self, name):\n        len(5)\n",
        "raised TypeError: object of type 'int' has no len() (mine.py:4)",
    ),
    "no super().__init__": (
        "class X(Predictor):\n    def __init__(self, name):\n        self.weights = 5\n",
        "its class X has an __init__ without super().__init__(name)",
    ),
    "a factory of nothing": ("def X(name):\n    Predictor(name)\n", "returned None: expected a kserve.Model"),
    "a factory of something else": ("def X(name):\n    return name\n", "returned a str: expected a kserve.Model"),
    "an async factory": ("async def X(name):\n    return Predictor(name)\n", "is an async def: expected a plain def"),
    "a model without super().__init__": (
        "class Y(Predictor):\n    def __init__(self):\n        pass\nX = Y()\n",
        "its class Y has an __init__ without super().__init__(name)",
    ),
}


@pytest.mark.parametrize("mistake", MAKING)
def test_a_target_that_makes_no_model_is_one_sentence(folder, mistake):
    code, sentence = MAKING[mistake]
    (folder / "mine.py").write_text(f"from kservekit.serving import Predictor\n{code}")
    with pytest.raises(CannotStart) as found:
        load_target("mine.py:X")("m")
    assert str(found.value).startswith("mine.py:X ")
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_what_a_model_says_of_a_setting_is_left_as_it_is(folder):
    code = "from kservekit.errors import CannotStart\ndef X(name):\n    raise CannotStart('MY_SETTING is 5')\n"
    (folder / "mine.py").write_text(code)
    with pytest.raises(CannotStart, match=r"^MY_SETTING is 5$"):
        load_target("mine.py:X")("m")


def test_a_class_a_factory_and_a_model_are_targets(folder):
    (folder / "mine.py").write_text(f"{GOOD}def make(name):\n    return Good(name)\nmodel = Good('made')\n")
    good = load_target("mine.py:Good")("a")
    assert isinstance(good, Predictor)
    assert good.name == "a"
    assert load_target("mine.py:make")("b").name == "b"
    assert load_target("mine:model").name == "made"


def test_only_classes_of_the_module_itself_are_offered(folder):
    (folder / "mine.py").write_text(GOOD)
    assert refusal("mine.py:Goood") == "mine.py has no 'Goood'; its classes: Good"
    assert set(re.findall(r"\w+", refusal("kservekit.serving:Nix").partition("classes: ")[2])) == {
        *("ModelServer", "Predictor", "Transformer")  # a package's are those of its modules
    }
    (folder / "mine.py").write_text("from kservekit.serving import Predictor, TensorSpec\n")
    del sys.modules["mine"]
    assert refusal("mine.py:Good") == "mine.py has no 'Good'; its classes: none"


@pytest.mark.parametrize(
    ("code", "flags", "sentence"),
    [
        (f"{GOOD})", (), "kservekit serve: mine.py cannot be imported: SyntaxError: unmatched ')' (mine.py:4)"),
        (
            f"{GOOD}    def __init__(self, name):\n        1 / 0\n",
            (),
            "ZeroDivisionError: division by zero (mine.py:5)",
        ),
        (GOOD, ("--model_name", ""), "--model_name is '': expected a name, such as doubler"),
        (GOOD, ("--http_port", "70000"), "--http_port is 70000: expected 0 to 65535"),
        (GOOD, ("--grpc_port=-1",), "--grpc_port is -1: expected 0 to 65535"),
        (GOOD, ("--log_config_file", "nix.yaml"), "--log_config_file is 'nix.yaml': no such file"),
    ],
)
def test_what_is_in_the_way_of_serving_is_one_line_and_exit_code_1(tmp_path, code, flags, sentence):
    (tmp_path / "mine.py").write_text(code)
    done = kservekit("serve", "mine.py:Good", *flags, cwd=tmp_path, env={**os.environ, "KSERVEKIT_HOST": "127.0.0.1"})
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_after_the_target_is_help(tmp_path, flag):
    done = kservekit("serve", "no_such_module:Good", "--model_name=m", flag, timeout=60)
    assert done.returncode == 0
    assert "--predictor_host" in done.stdout


LINE = r"^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} \d+ kservekit\.\S+ {level} {message}$"


def log_of(folder, code, *flags, **settings):
    """What a server of `code` wrote from its start to its end."""
    (folder / "mine.py").write_text(code)
    environment = {f"KSERVEKIT_{name}": value for name, value in settings.items()}
    with LocalServer(f"{folder / 'mine.py'}:Good", *flags, model_name="m", settings=environment) as server:
        ports = [url.split(":")[1] for url in (server.http_url, server.grpc_url)]
    return server.process.log.read_text(), ports


def test_what_it_serves_and_what_it_warns_of_are_logged_with_time_and_level(tmp_path):
    log, (http, grpc) = log_of(tmp_path, GOOD, NIX="5")
    serving = LINE.format(level="INFO", message=rf"serving \['m'\] on http {http}, grpc {grpc}")
    assert len(re.findall(serving, log, re.M)) == 1
    warning = LINE.format(level="WARNING", message="KSERVEKIT_NIX is set and nothing reads it.*")
    assert len(re.findall(warning, log, re.M)) == 1
    assert log.count("KSERVEKIT_NIX") == 1


def test_a_flag_that_has_no_effect_is_said_to_have_none(tmp_path):
    log, _ = log_of(tmp_path, GOOD, "--max_threads=8", "--enable_grpc=true")
    warning = LINE.format(level="WARNING", message="--max_threads has no effect here: gRPC runs on the event loop.*")
    assert len(re.findall(warning, log, re.M)) == log.count("no effect") == 1


def test_a_script_that_calls_serve_itself_gets_the_same_checks(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(f"{GOOD}\nfrom kservekit.serving import serve\nserve(Good)\n")
    command = [sys.executable, str(script), "--http_port=70000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "kservekit: --http_port is 70000: expected 0 to 65535\n")


LOG_CONFIG = """
version: 1
formatters: {mine: {format: "MINE %(message)s"}}
handlers: {mine: {class: logging.StreamHandler, formatter: mine}}
loggers: {kservekit: {handlers: [mine], level: INFO}}
"""


def test_logging_that_is_set_up_already_is_left_alone(tmp_path):
    own = "import logging\nlogging.basicConfig(level='INFO', format='OWN %(message)s')\n"
    log, _ = log_of(tmp_path, own + GOOD)
    assert log.count("OWN serving ['m']") == log.count("serving ['m']") == 1
    (tmp_path / "log.yaml").write_text(LOG_CONFIG)
    log, _ = log_of(tmp_path, GOOD, f"--log_config_file={tmp_path / 'log.yaml'}")
    assert log.count("MINE serving ['m']") == log.count("serving ['m']") == 1
    log, _ = log_of(tmp_path, GOOD, "--configure_logging=false")
    assert "serving ['m']" not in log


def piped(*arguments, into, unbuffered=""):
    """The exit code and stderr where stdout is `into`."""
    command = [sys.executable, "-m", "kservekit.cli", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=into, stderr=subprocess.PIPE, text=True, timeout=120, env=environment)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (("--help",), ""),
        (("demo", "--help"), ""),
        (("--version",), ""),
        (("serve", "--help"), ""),
        (("serve", "--help"), "1"),
    ],
)
def test_a_full_disk_under_stdout_is_one_line_and_exit_code_1(arguments, unbuffered):
    with open("/dev/full", "w") as full:
        code, said = piped(*arguments, into=full, unbuffered=unbuffered)
    assert (code, said) == (1, "kservekit: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_under_stdout_is_quiet(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    assert piped("serve", "--help", into=writer, unbuffered=unbuffered) == (1, "")
    os.close(writer)


def test_demo_checks_the_settings_at_its_start():
    done = kservekit("demo", env={**os.environ, "KSERVEKIT_MAX_BODY_BYTES": "abc"})
    assert done.returncode == 1
    assert done.stderr.startswith("kservekit demo: KSERVEKIT_MAX_BODY_BYTES is 'abc': expected a whole number")
    assert "[1/4]" not in done.stderr

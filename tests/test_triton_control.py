"""Triton's repository, statistics, trace and log extensions, on the real Triton: the typed API and the command."""

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from calls import eventually, floats, kservekit
from conftest import DOUBLES, write_doubles

from kservekit import errors
from kservekit.codec.message import Request
from kservekit.local.triton import HOST
from kservekit.oip import connect
from kservekit.oip.triton_control import TritonControl
from kservekit.predictors import triton_command
from kservekit.predictors.repository import write_model

PATIENT_IN_TRITON = """
import pathlib
import time
import triton_python_backend_utils as triton

gate = pathlib.Path({gate!r})

class TritonPythonModel:
    def execute(self, requests):
        (gate / "entered").touch()
        while not (gate / "open").exists():
            time.sleep(0.01)
        values = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor("y", x)]) for x in values]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("control")


@pytest.fixture
def gate(folder):
    for file in folder.glob("gate/*"):
        file.unlink()
    return folder / "gate"


@pytest.fixture(scope="module")
def triton(local_triton, folder):
    write_doubles(folder / "repository", folder)
    write_doubles(folder / "repository", folder, name="spare")
    (folder / "repository/broken/1").mkdir(parents=True)
    (folder / "repository/broken/config.pbtxt").write_text("no config")
    (folder / "gate").mkdir()
    (folder / "patient.py").write_text(PATIENT_IN_TRITON.format(gate=str(folder / "gate")))
    write_model(folder / "repository", "patient", DOUBLES, {"model.py": folder / "patient.py"}, max_batch_size=8)
    arguments = ["--model-control-mode=explicit", "--load-model=doubles"]
    return local_triton(folder / "repository", arguments=arguments)


def do(triton, work, **options):
    async def main():
        control = TritonControl(triton.grpc_url, **options)
        try:
            return await work(control)
        finally:
            await control.close()

    return asyncio.run(main())


def infer(triton, *rows, model="doubles"):
    async def main():
        backend = connect(triton.grpc_url)
        try:
            return await backend.infer(Request({"x": floats(*rows)}, model=model))
        finally:
            await backend.close()

    return asyncio.run(main())


def states(triton):
    return {item.name: item.state for item in do(triton, TritonControl.index)}


def command(triton, *words):
    return kservekit("triton", *words, "--url", triton.grpc_url)


def test_a_model_is_loaded_answers_and_is_unloaded(triton):
    assert states(triton) == {"broken": "", "doubles": "READY", "patient": "", "spare": ""}
    do(triton, lambda control: control.load("spare"))
    assert states(triton)["spare"] == "READY"
    assert infer(triton, [1, 2, 3], model="spare").tensors["y"].tolist() == [[2, 4, 6]]
    do(triton, lambda control: control.unload("spare"))
    assert states(triton)["spare"] == "UNAVAILABLE"
    ready = do(triton, lambda control: control.index(ready=True))
    assert [item.name for item in ready] == ["doubles"]


@pytest.fixture
def patient(triton, gate):
    """The model `patient` in the midst of a request, whose answer comes once the gate is opened."""
    do(triton, lambda control: control.load("patient"))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(infer, triton, [1, 2, 3], model="patient")
        assert eventually((gate / "entered").exists)
        try:
            yield answer
        finally:
            (gate / "open").touch()
    assert eventually(lambda: states(triton)["patient"] == "UNAVAILABLE")


def test_unloading_waits_for_what_is_in_flight(triton, patient, gate):
    with ThreadPoolExecutor() as pool:
        unloaded = pool.submit(do, triton, lambda control: control.unload("patient"))
        assert eventually(lambda: states(triton)["patient"] == "UNLOADING")
        assert not unloaded.done()
        (gate / "open").touch()
        unloaded.result()
    assert states(triton)["patient"] == "UNAVAILABLE"
    assert patient.result().tensors["y"].tolist() == [[1, 2, 3]]


def test_unloading_gives_up_where_a_request_takes_too_long(triton, patient):
    with pytest.raises(errors.DeadlineExceeded, match=r"'patient', version 1, is UNLOADING after 0.2 s"):
        do(triton, lambda control: control.unload("patient"), timeout_s=0.2)


def test_a_configuration_can_stand_in_for_the_models_own(triton):
    config = {
        "backend": "python",
        "max_batch_size": 2,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
    }
    do(triton, lambda control: control.load("spare", config_json=json.dumps(config)))
    with pytest.raises(errors.InvalidInput, match="batch-size must be <= 2"):
        infer(triton, *[[1, 2, 3]] * 3, model="spare")
    do(triton, lambda control: control.unload("spare"))


def test_what_triton_refuses_is_said_in_its_own_words(triton):
    with pytest.raises(
        errors.ModelError, match=r"failed to load 'broken', .*: Triton cannot read its .*log has the reason"
    ):
        do(triton, lambda control: control.load("broken"))
    with pytest.raises(errors.ServingError, match="nix"):
        do(triton, lambda control: control.statistics("nix"))
    with pytest.raises(errors.ServingError, match="Unable to parse 'trace_rate', got: x"):
        do(triton, lambda control: control.trace_settings("", {"trace_rate": "x"}))


@pytest.mark.parametrize("name", ["nix", ""])
@pytest.mark.parametrize("call", [TritonControl.load, TritonControl.unload])
def test_a_model_that_there_is_not_is_neither_loaded_nor_unloaded(triton, call, name):
    with pytest.raises(errors.ModelNotFound, match=f"Triton's repository has no model '{name}': it has 'broken', 'dou"):
        do(triton, lambda control: call(control, name))


def test_a_model_whose_folder_has_gone_is_still_unloaded(triton, folder):
    write_doubles(folder / "repository", folder, name="passing")
    do(triton, lambda control: control.load("passing"))
    shutil.rmtree(folder / "repository/passing")
    do(triton, lambda control: control.unload("passing"))
    assert eventually(lambda: "passing" not in [item.name for item in do(triton, TritonControl.statistics)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda control: control.trace_settings("doubles", {"bogus": 1, "trace_rate": 3}),
            "no trace setting 'bogus': it has 'log_fre",
        ),
        (
            lambda control: control.log_settings({"log_info": False, "bogus": 1}),
            "no log setting 'bogus': it has 'log_error', ",
        ),
        (
            lambda control: control.log_settings({"log_verbose_level": 2**32}),
            "'log_verbose_level' is 4294967296: expected a",
        ),
    ],
)
def test_a_setting_that_there_is_not_is_refused_before_any_is_changed(triton, change, said):
    async def settings(control):
        return await control.trace_settings("doubles"), await control.log_settings()

    before = do(triton, settings)
    with pytest.raises(errors.InvalidInput, match=said):
        do(triton, change)
    assert do(triton, settings) == before


def test_statistics_count_requests_and_rows(triton):
    def counts():
        (found,) = do(triton, lambda control: control.statistics("doubles"))
        return found

    before = counts()
    infer(triton, *[[1, 2, 3]] * 5)
    after = counts()
    assert after.requests - before.requests == 1
    assert after.failures == before.failures
    assert after.inferences - before.inferences == 5
    assert after.batches[5] - before.batches.get(5, 0) == 1
    assert min(after.queue_ms, after.compute_input_ms, after.compute_infer_ms, after.compute_output_ms) > 0


def test_trace_settings_are_changed_for_a_model_and_taken_back(triton):
    servers = do(triton, TritonControl.trace_settings)
    changed = do(triton, lambda control: control.trace_settings("doubles", {"trace_rate": 7, "log_frequency": "3"}))
    assert (changed["trace_rate"], changed["log_frequency"]) == ("7", "3")
    assert do(triton, TritonControl.trace_settings) == servers
    back = do(triton, lambda control: control.trace_settings("doubles", {"trace_rate": None, "log_frequency": None}))
    assert back["trace_rate"] == servers["trace_rate"] != "7"


def test_log_settings_are_changed(triton):
    before = do(triton, TritonControl.log_settings)
    changed = do(triton, lambda control: control.log_settings({"log_verbose_level": 1, "log_info": False}))
    assert (changed["log_verbose_level"], changed["log_info"]) == (1, False)
    do(triton, lambda control: control.log_settings({name: before[name] for name in ("log_verbose_level", "log_info")}))
    assert do(triton, TritonControl.log_settings) == before


def test_the_command_shows_tables(triton):
    done = command(triton, "index")
    assert (done.returncode, done.stderr) == (0, "")
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert head == ["name", "version", "state", "reason"]
    assert ["doubles", "1", "READY", "-"] in rows
    assert command(triton, "load", "spare").stdout == ""
    assert "spare" in command(triton, "index", "--ready").stdout
    assert command(triton, "unload", "spare").returncode == 0
    found = json.loads(command(triton, "statistics", "doubles", "--json").stdout)
    assert [(item["name"], item["version"]) for item in found] == [("doubles", "1")]
    assert "queue_ms" in command(triton, "statistics").stdout
    changed = command(triton, "trace", "doubles", "trace_rate=9", "trace_count=5").stdout.split()
    assert changed[changed.index("trace_rate") + 1] == "9"
    assert command(triton, "trace", "doubles", "trace_rate=", "trace_count=").returncode == 0
    changed = command(triton, "log", "log_verbose_level=0", "log_error=true").stdout.split()
    assert changed[changed.index("log_error") + 1] == "true"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load", "nix"), "Triton's repository has no model 'nix': it has 'broken', 'doubles', 'patient', 'spare'"),
        (("unload", ""), "Triton's repository has no model ''"),
        (("log", "log_verbose_level=99999999999"), "log setting 'log_verbose_level' is 99999999999: expected a number"),
        (("load", "spare", "--config", "/nowhere/config.json"), "--config /nowhere/config.json cannot be read as JSON"),
        (("log", "verbose"), "'verbose' is no setting: expected name=value, such as log_verbose_level=1"),
        (("trace", "doubles", "=7"), "'=7' is no setting"),
    ],
)
def test_the_command_ends_with_1_and_one_line(triton, words, said):
    done = command(triton, *words)
    assert done.returncode == 1
    assert done.stderr.startswith("kservekit triton: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_says_where_nobody_answers():
    done = kservekit("triton", "index", "--url", f"{HOST}:1")
    assert (done.returncode, f"Triton at {HOST}:1 cannot be reached" in done.stderr) == (1, True)
    done = kservekit("triton", "index", "--url", f"http://{HOST}:1")
    assert (done.returncode, "expected Triton's gRPC port" in done.stderr) == (1, True)


def test_without_a_port_it_is_tritons(monkeypatch):
    hosts = []
    monkeypatch.setattr(triton_command, "TritonControl", lambda host, **_: hosts.append(host) or NoTriton())
    for url in ("localhost", "grpc://localhost", "[::1]", "localhost:1", "[::1]:1"):
        triton_command.run(["load", "m", "--url", url], print)
    assert hosts == ["localhost:8001", "localhost:8001", "[::1]:8001", "localhost:1", "[::1]:1"]


class NoTriton:
    async def load(self, model, config_json):
        pass

    async def close(self):
        pass


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(capsys, seconds):
    with pytest.raises(SystemExit, match="2"):
        triton_command.run(["index", f"--timeout={seconds}"], print)
    assert f"argument --timeout: '{seconds}': expected seconds, above 0" in capsys.readouterr().err

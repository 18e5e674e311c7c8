"""What `kservekit repository check` says of ensembles, held against the real Triton: it refuses what is an error."""

import re

import pytest
from calls import http, kservekit
from onnx_files import write_doubles

from kservekit.predictors.repository_check import check

HEAD = """
platform: "ensemble"
max_batch_size: 8
input { name: "in" data_type: TYPE_FP32 dims: 3 }
output { name: "out" data_type: TYPE_FP32 dims: 3 }
"""
UNBATCHED = HEAD.replace("max_batch_size: 8\n", "").replace("dims: 3", "dims: [-1, 3]")


def part(name, max_batch=8, dims="3", datatype="FP32", beside="", version=1):
    """A model that a step may run: x to y."""
    x, y = (f'name: "{tensor}" data_type: TYPE_{datatype} dims: [{dims}]' for tensor in "xy")
    config = f'backend: "python" max_batch_size: {max_batch} input {{ {x} }} output {{ {y} }} {beside}'
    return {f"{name}/config.pbtxt": config, f"{name}/{version}/model.py": PASSES_ON}


PASSES_ON = """
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [triton.InferenceResponse([triton.Tensor("y", x)]) for x in inputs]
"""

PARTS = {
    **part("m"),
    **part("small", max_batch=4),
    **part("unbatched", max_batch=0, dims="-1, 3"),
    **part("five", dims="5"),
    **part("open", dims="-1"),
    **part("half", datatype="FP16"),
    **part("two", beside='input { name: "w" data_type: TYPE_FP32 dims: 3 }'),
    **part("choosy", beside='input { name: "w" data_type: TYPE_FP32 dims: 3 optional: true }'),
    **part("later", version=2),
    **part("later", version=3),
}


def step(model="m", given="x=in", gives="y=out", version=-1):
    maps = [("input_map", given), ("output_map", gives)]
    items = [
        f'{kind} {{ key: "{item.split("=")[0]}" value: "{item.split("=")[1]}" }}'
        for kind, text in maps
        for item in text.split()
    ]
    return f'step {{ model_name: "{model}" model_version: {version} {" ".join(items)} }}'


def ensemble(*steps, head=HEAD, beside=""):
    return f"{head} ensemble_scheduling {{ {' '.join(steps)} }} {beside}"


GOOD = {
    "one-step": ensemble(step()),
    "two-steps": ensemble(step(gives="y=mid"), step(given="x=mid")),
    "two-steps-in-any-order": ensemble(step(given="x=mid"), step(gives="y=mid")),
    "an-ensemble-in-one": ensemble(step("one-step", "in=in", "out=out")),
    "sizes-left-open": ensemble(step("open")),
    "an-input-that-may-be-left-out": ensemble(step("choosy")),
    "a-step-that-has-no-batches": ensemble(step("unbatched")),
    "no-batches-and-a-step-that-has": ensemble(step(), head=UNBATCHED),
    "no-batches-and-the-rows-of-a-step-that-has": ensemble(step(), head=HEAD.replace("max_batch_size: 8\n", "")),
    "no-batches": ensemble(step("unbatched"), head=UNBATCHED),
    "a-version": ensemble(step("later", version=3)),
    "a-cache": ensemble(step(), beside="response_cache { enable: true }"),
}

FAULTS = {
    "no-such-model": (ensemble(step("ghost")), "step 0 runs 'ghost': there is "),
    "no-such-input": (ensemble(step(given="z=in")), "'m' has no input 'z': it has 'x'"),
    "no-such-input-beside": (ensemble(step(given="x=in z=in")), "'m' has no input 'z': it has 'x'"),
    "no-such-output": (ensemble(step(gives="z=out")), "'m' has no output 'z': it has 'y'"),
    "an-input-left-out": (ensemble(step("two")), "step 0 gives 'two' no 'w'"),
    "a-tensor-from-nowhere": (ensemble(step(given="x=mid")), "no step and no input gives 'mid'"),
    "an-output-from-nowhere": (ensemble(step(gives="y=other")), "no step and no input gives 'out'"),
    "a-ring-of-steps": (
        ensemble(step(), step("m", "x=b", "y=a"), step("m", "x=a", "y=b")),
        "steps wait for each other: nobody can be the first to give 'a', 'b'",
    ),
    "a-ring-of-ensembles": (ensemble(step("a-ring-of-ensembles", "in=in", "out=out")), "come back to 'a-ring-of-"),
    "a-tensor-twice": (ensemble(step(), step()), "'out' comes from output 'y' of 'm' and from output 'y' of 'm'"),
    "a-tensor-for-nobody": (ensemble(step(), step(gives="y=mid")), "nothing uses 'mid', which comes from output 'y'"),
    "an-input-for-nobody": (
        ensemble(step(), head=HEAD + 'input { name: "spare" data_type: TYPE_FP32 dims: 3 }'),
        "nothing uses 'spare', which comes from the ensemble's input",
    ),
    "another-datatype": (
        ensemble(step("half")),
        "'in' is FP32 as the ensemble's input, and FP16 as input 'x' of 'half'",
    ),
    "another-datatype-between": (
        ensemble(step(gives="y=mid"), step("half", given="x=mid")),
        "'mid' is FP32 as output 'y' of 'm', and FP16 as input 'x' of 'half'",
    ),
    "another-size": (ensemble(step("five")), "'in' is [-1, 3] as the ensemble's input, and [-1, 5] as input 'x' of"),
    "a-dimension-more": (
        ensemble(step("open"), head=HEAD.replace("dims: 3", "dims: [3, 1]", 1)),
        "'in' is [-1, 3, 1] as the ensemble's input, and [-1, -1] as input 'x' of 'open'",
    ),
    "too-many-rows": (
        ensemble(step("small")),
        "max_batch_size is 8, and 'small' takes 4: make the ensemble's no larger",
    ),
    "a-version-that-there-is-not": (ensemble(step(version=7)), "step 0 runs version 7 of 'm': served are 1 (-1: the"),
    "a-version-that-is-not-served": (ensemble(step("later", version=2)), "runs version 2 of 'later': served are 3 ("),
    "no-steps": (ensemble(), "no steps: expected ensemble_scheduling { step { model_name: ... } }"),
    "no-scheduling": (HEAD, "no steps: expected"),
    "no-name": (ensemble(step("")), "step 0 has no model_name"),
    "no-input-map": (ensemble(step(given="")), "step 0 has no input_map"),
    "no-output-map": (ensemble(step(gives=""), step()), "step 0 has no output_map"),
    "no-platform": (ensemble(step(), head=HEAD.replace('platform: "ensemble"', "")), "platform is '' beside ensemble_"),
    "a-backend": (ensemble(step(), beside='backend: "python"'), "backend is 'python', and an ensemble has none"),
    "no-input": (
        ensemble(step(), head=HEAD.replace("input", "#", 1)),
        "no input is declared, and the ensemble backend",
    ),
    "no-output": (
        ensemble(step(), head=HEAD.replace("output", "#", 1)),
        "no output is declared, and the ensemble back",
    ),
    "no-datatype": (ensemble(step(), head=HEAD.replace("data_type: TYPE_FP32", "", 1)), "input 'in' has no data_type"),
    "instances": (ensemble(step(), beside="instance_group { count: 1 }"), "instance_group is set, and an ensemble has"),
    "optimization": (ensemble(step(), beside="optimization { }"), "optimization is set, and an ensemble has none"),
    "a-warm-up": (
        ensemble(step(), beside='model_warmup { name: "a" }'),
        "model_warmup is set, and an ensemble has none",
    ),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensembles") / "models"
    texts = GOOD | {name: text for name, (text, _) in FAULTS.items()}
    files = PARTS | {f"{name}/config.pbtxt": text for name, text in texts.items()}
    files |= {f"{name}/1/place.txt": "" for name in texts}
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="module")
def found(repository):
    """By model, the errors that check finds."""
    errors: dict[str, list[str]] = {}
    for finding in check(repository):
        if finding.is_error:
            errors.setdefault(finding.where.partition("/")[0], []).append(finding.what)
    return errors


@pytest.fixture(scope="module")
def triton(local_triton, repository):
    """With nothing loaded yet, so that what it refuses is one model's alone."""
    return local_triton(repository, arguments=["--model-control-mode=explicit"])


def load(triton, name):
    return http(triton.http_url, f"/v2/repository/models/{name}/load", {})


@pytest.mark.parametrize("name", GOOD)
def test_what_triton_loads_has_no_errors(found, triton, name):
    assert found.get(name) is None
    assert load(triton, name).status == 200


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_is_what_triton_refuses(found, triton, name):
    sentence = FAULTS[name][1]
    assert any(sentence in one for one in found[name]), found[name]
    reply = load(triton, name)
    assert reply.status in (400, 500)  # 500 for what is not even tried
    assert re.search("failed to (poll|load)|load failed", reply.json["error"])


def test_nothing_else_is_found(found):
    assert found.keys() == FAULTS.keys()


def test_an_input_that_a_step_writes_is_an_error_although_triton_loads_it_because_it_never_answers(tmp_path):
    for path, text in (PARTS | {"e/config.pbtxt": ensemble(step(gives="y=in"), step()), "e/1/place.txt": ""}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert [finding.what for finding in check(tmp_path) if finding.is_error] == [
        "'in' comes from the ensemble's input and from output 'y' of 'm': expected one of them"
    ]


def test_what_a_step_takes_is_read_from_its_file_where_no_config_says_it(tmp_path):
    (tmp_path / "m/1").mkdir(parents=True)
    write_doubles(tmp_path / "m/1/model.onnx", shape=("n", 3))
    (tmp_path / "e/1").mkdir(parents=True)
    for text, expected in (
        (ensemble(step()), []),
        (ensemble(step(given="z=in")), ["step 0 gives 'm' no 'x'", "'m' has no input 'z': it has 'x'"]),
        (
            ensemble(step(), head=HEAD.replace("FP32", "FP16", 1)),
            ["'in' is FP16 as the ensemble's input, and FP32 as input 'x' of 'm'"],
        ),
    ):
        (tmp_path / "e/config.pbtxt").write_text(text)
        assert sorted(finding.what for finding in check(tmp_path)) == sorted(expected)


def test_the_command_names_the_ensemble_and_what_is_wrong_with_it(repository):
    done = kservekit("repository", "check", str(repository))
    assert done.returncode == 1
    assert "error no-such-input/config.pbtxt: 'm' has no input 'z': it has 'x'" in done.stdout

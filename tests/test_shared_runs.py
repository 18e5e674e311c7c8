"""Whether callers may share a run of a model, by what its file calls its sizes, and by rows that are tried."""

import re

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import write_onnx

from kservekit.config import OnnxSettings
from kservekit.errors import CannotStart
from kservekit.predictors.onnx import OnnxPredictor
from kservekit.predictors.onnx_file import read_onnx
from kservekit.predictors.repository_build import Build, build, prepare
from kservekit.predictors.repository_check import check
from kservekit.predictors.shared_runs import CannotTell, on_the_cpu, shared_run_fault

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def doubles(x, y):
    return [helper.make_node("Add", ["x", "x"], ["y"])], [("x", FLOAT, x)], [("y", FLOAT, y)]


def of_one(operator, x, y, **attributes):
    return [helper.make_node(operator, ["x"], ["y"], **attributes)], [("x", FLOAT, x)], [("y", FLOAT, y)]


def embeds(entries):
    table = numpy_helper.from_array(np.arange(entries, dtype=np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "at"], ["y"])]
    return nodes, [("at", INT64, ["n", "tokens"])], [("y", FLOAT, ["m", "tokens"])], [table]


def finds_boxes(x, y):
    """What is over a half, as a picture and a box each."""
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["hot"]),
        helper.make_node("NonZero", ["hot"], ["places"]),
        helper.make_node("Transpose", ["places"], ["y"], perm=[1, 0]),
    ]
    return nodes, [("x", FLOAT, x)], [("y", INT64, y)], [helper.make_tensor("half", FLOAT, [], [0.5])]


def multiplies(a, b, y):
    return [helper.make_node("MatMul", ["a", "b"], ["y"])], [("a", FLOAT, a), ("b", FLOAT, b)], [("y", FLOAT, y)]


MODELS = {
    "one name": (doubles(["n", 3], ["n", 3]), ""),
    "a name each": (doubles(["n", 3], ["m", 3]), ""),
    "no names": (doubles([None, None, 3], [None, None, 3]), ""),
    "a name each, and places in a table of two": (embeds(2), ""),
    "boxes of all pictures": (finds_boxes(["n", 5], ["boxes", 2]), "'y' has shape .* for 3 rows, and .* for one"),
    "boxes, and no names": (finds_boxes([None, 5], [None, 2]), "'y' has shape .* for 3 rows, and .* for one"),
    "turned": (of_one("Transpose", ["a", "b"], ["b", "a"]), "'a' is the first size of 'x', and of 'y' another one"),
    "turned, and no names": (of_one("Transpose", [None, None], [None, None]), r"'y' has shape \[64, 3\] for 3 rows"),
    "a square": (multiplies(["k", "k"], ["k", "k"], ["k", "k"]), "'k' is the first size of 'a', and of 'a' another"),
    "two batches": (multiplies(["n", 3], ["m", 3, 2], ["r", "s", 2]), "'y' has other values for a row that is alone"),
    "a share of all rows": (of_one("Softmax", ["n", 3], ["m", 3], axis=0), "'y' has other values for a row"),
}


@pytest.fixture
def file(tmp_path):
    return lambda model: read_onnx(write_onnx(tmp_path / "m.onnx", *model))


@pytest.mark.parametrize(("model", "sentence"), MODELS.values(), ids=MODELS)
def test_callers_share_runs_of_models_that_answer_each_row_by_itself(file, tmp_path, model, sentence):
    found = file(model)
    built = prepare(Build(found.path, "m", warm_up=False))
    assert built.config.max_batch_size == (0 if sentence else 8)
    predictor = OnnxPredictor(settings=OnnxSettings(str(found.path), batch_rows=8))
    if not sentence:
        assert built.notes == ()
        assert predictor.load()
        return
    told = build(Build(found.path, "m", warm_up=False, max_batch=4), tmp_path / "models")
    assert told.config.max_batch_size == 4
    (finding,) = check(tmp_path / "models")
    assert re.search(f"^max_batch_size is 4, and callers may get each other's answers: .*{sentence}", finding.what)
    (note,) = built.notes
    assert re.search(f"^callers do not share runs: .*{sentence}", note)
    with pytest.raises(CannotStart, match=sentence):
        predictor.load()


def test_where_rows_cannot_be_tried_a_repository_has_no_batches_and_a_predictor_what_it_is_told(file, caplog):
    found = file(embeds(1))
    with pytest.raises(CannotTell, match=r"'at' \[3, 64\] of chance cannot be run: InvalidArgument: "):
        shared_run_fault(found.spec, found.sizes, on_the_cpu(found.path))
    built = prepare(Build(found.path, "m", warm_up=False))
    assert built.config.max_batch_size == 0
    assert "--max-batch 8 where that is so" in built.notes[0]
    assert OnnxPredictor(settings=OnnxSettings(str(found.path), batch_rows=8)).load()
    assert "nothing says that each row of this model's answers is one row's of its inputs" in caplog.text


@pytest.mark.parametrize("sizes", [{"width": 2}, {"x[1]": 2}, {"x[1]": 2, "width": 5}])
def test_rows_are_tried_with_the_sizes_that_are_given(file, sizes):
    taken = []

    def run(tensors):
        taken.append(tensors["x"].shape)
        return {"y": tensors["x"]}

    found = file(doubles(["n", "width"], ["m", "width"]))
    assert shared_run_fault(found.spec, found.sizes, run, sizes) == ""
    assert taken == [(3, 2), (1, 2), (1, 2), (1, 2)]

import numpy as np
import pytest

from kservekit.errors import ModelError
from kservekit.tensors import as_bytes, check_outputs


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([b"a\0", b"\0"], [b"a\0", b"\0"]),
        ([["a\0"], [b"b"]], [[b"a\0"], [b"b"]]),
        (b"a\0", b"a\0"),
        ("text", b"text"),
        (np.array(["a", "Ä"]), [b"a", "Ä".encode()]),
        (np.array([b"a\0", "b"], object), [b"a\0", b"b"]),
        ([], []),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    ],
)
def test_an_output_may_be_whatever_numpy_takes_for_an_array(value, expected):
    assert check_outputs({"y": value}, "M.infer")["y"].tolist() == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "output 'y' of M.infer is of type NoneType: expected bytes or str"),
        ([b"a", None], r"output 'y' of M.infer\[1\] is of type NoneType"),
        ([["a", 1]], r"M.infer\[0\]\[1\] is of type int"),
        (np.array([1.5, 2], object), r"M.infer\[0\] is of type float"),
        ([2**64], r"M.infer\[0\] is of type int"),
        ({"a": 1}, "is of type dict"),
        ([[1], [2, 3]], "output 'y' of M.infer is no array"),
        (["\ud800"], "text that UTF-8 has no form for"),
    ],
)
def test_an_output_of_other_objects_is_a_model_error_that_says_where(value, reason):
    with pytest.raises(ModelError, match=reason):
        check_outputs({"y": value}, "M.infer")


def test_bytes_that_are_bytes_already_are_not_copied():
    array = np.array([b"a", b""], object)
    assert as_bytes(array) is array

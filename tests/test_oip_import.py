"""KServe and tritonclient's gRPC client in one process (kserve#3099)."""

import os
import subprocess
import sys

import pytest

TALK = """
from kserve.protocol.grpc import grpc_predict_v2_pb2 as kserve_messages
import tritonclient.grpc
sent = kserve_messages.ModelInferRequest(model_name="m")
sent.inputs.add(name="x", datatype="FP32", shape=[1])
read = tritonclient.grpc.service_pb2.ModelInferRequest.FromString(sent.SerializeToString())
assert (read.model_name, read.inputs[0].name) == ("m", "x")
print("both")
"""


def python(code, implementation="upb"):
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("implementation", ["upb", "python"])
@pytest.mark.parametrize(
    "imports",
    ["import kserve\nimport kservekit.oip", "import kservekit.oip\nimport kserve", "import kservekit.serving"],
    ids=["kserve first", "kservekit.oip first", "kservekit.serving alone"],
)
def test_both_live_in_one_process(imports, implementation):
    done = python(f"import kservekit\n{imports}\nimport kservekit.oip.triton_messages\n{TALK}", implementation)
    assert done.stdout == "both\n", done.stderr


def test_without_the_shim_they_do_not():
    done = python("import kserve\nimport tritonclient.grpc")
    assert "duplicate symbol" in done.stderr


@pytest.mark.parametrize("room", ["kservekit.oip.triton_messages", "kservekit.serving"])
def test_tritonclient_imported_before_us_is_an_import_error_that_says_what_to_do(room):
    done = python(f"import tritonclient.grpc\nimport {room}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tritonclient.grpc was imported before kservekit.oip")
    assert "import kservekit.oip or kservekit.serving first" in last


def test_a_pure_python_protobuf_without_the_private_name_says_what_to_do():
    done = python(
        "import google.protobuf.internal.builder as builder\ndel builder._sym_db\nimport kservekit.oip.triton_messages",
        "python",
    )
    assert "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION" in done.stderr.strip().splitlines()[-1]


def test_protobuf_is_left_as_it_was_found():
    done = python(
        "from google.protobuf import descriptor_pool\nbefore = descriptor_pool.Default\n"
        "import kservekit.oip.triton_messages\nassert descriptor_pool.Default is before\nprint('same')"
    )
    assert done.stdout == "same\n", done.stderr


def test_importing_kservekit_imports_neither_kserve_nor_tritonclient_nor_numpy():
    done = python(
        "import sys, kservekit\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'kserve', 'tritonclient', 'numpy', 'grpc'}))"
    )
    assert done.stdout == "[]\n", done.stderr

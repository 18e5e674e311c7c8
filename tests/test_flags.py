"""KServe's flags as we take them."""

import logging

import pytest
from certificates import self_signed

from kservekit.errors import CannotStart
from kservekit.serving.flags import check, flags_parser, keep_our_loggers


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    good = self_signed("localhost", folder)
    (folder / "other").mkdir()
    files = {"good": good, "other": self_signed("localhost", folder / "other"), "gone": folder / "gone"}
    files["text"] = folder / "text"
    files["text"].write_text("no PEM")
    return {name: str(path) for name, path in files.items()} | {"folder": str(folder)}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"certfile": "good"}, "--ssl_keyfile is not set and --ssl_certfile is: expected both or none"),
        ({"keyfile": "good"}, "--ssl_certfile is not set and --ssl_keyfile is: expected both or none"),
        ({"certfile": "gone", "keyfile": "good"}, "--ssl_certfile is '{gone}': No such file or directory"),
        ({"certfile": "good", "keyfile": "folder"}, "--ssl_keyfile is '{folder}': Is a directory"),
        ({"certfile": "good", "keyfile": "other"}, "expected a certificate in PEM and its own private key"),
        ({"certfile": "text", "keyfile": "good"}, "--ssl_certfile is '{text}' and --ssl_keyfile '{good}': expected"),
    ],
)
def test_what_is_wrong_with_the_files_for_tls_is_one_sentence(files, given, sentence):
    flags = [f"--ssl_{name}={files[file]}" for name, file in given.items()]
    with pytest.raises(CannotStart) as found:
        check(flags_parser().parse_args(flags))
    assert sentence.format_map(files) in str(found.value)
    assert "\n" not in str(found.value)


def test_a_pair_for_tls_is_taken(files):
    pair = [f"--ssl_certfile={files['good']}", f"--ssl_keyfile={files['good']}"]
    assert check(flags_parser().parse_args(pair)) == []


def test_a_log_config_that_turns_off_what_is_there_leaves_our_loggers_on():
    ours, other = logging.getLogger("kservekit.serving.rest"), logging.getLogger("somebody.elses")
    ours.disabled = other.disabled = True  # as dictConfig does where disable_existing_loggers is not said
    keep_our_loggers()
    assert (ours.disabled, other.disabled) == (False, True)
    other.disabled = False

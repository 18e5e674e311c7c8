import dataclasses

import pytest

from kservekit import config
from kservekit.errors import CannotStart


def test_settings_are_read_from_variables_by_prefix_and_field():
    found = config.read(
        config.ImageSettings,
        {
            "KSERVEKIT_IMAGE_SIZE": "300",
            "KSERVEKIT_IMAGE_MEAN": "1,2, 3.5",
            "KSERVEKIT_IMAGE_SOFTMAX": "off",
            "OTHER": "x",
        },
    )
    assert (found.size, found.mean, found.softmax) == (300, (1.0, 2.0, 3.5), False)
    assert found.top == config.ImageSettings().top


def test_every_bad_variable_is_reported_at_once_with_the_way_out():
    with pytest.raises(CannotStart) as found:
        config.check(
            {"KSERVEKIT_TRITON_TIMEOUT_S": "abc", "KSERVEKIT_IMAGE_SIZE": "-1", "KSERVEKIT_SERVER_TIMING": "maybe"}
        )
    assert sorted(str(found.value).splitlines()) == [
        "KSERVEKIT_IMAGE_SIZE is '-1': expected a whole number, such as 224",
        "KSERVEKIT_SERVER_TIMING is 'maybe': expected true or false, such as false",
        "KSERVEKIT_TRITON_TIMEOUT_S is 'abc': expected a number above 0, such as 60.0",
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-3", ""])
def test_a_timeout_must_be_a_number_above_zero(value):
    with pytest.raises(CannotStart, match="KSERVEKIT_TRITON_TIMEOUT_S"):
        config.read(config.TritonSettings, {"KSERVEKIT_TRITON_TIMEOUT_S": value})


def test_a_misspelt_variable_is_warned_of_and_a_service_link_does_not_stop_the_server():
    warnings = config.check(
        {"KSERVEKIT_TRITON_ULR": "x", "KSERVEKIT_X_PORT_8080_TCP": "tcp://10.0.0.1:8080", "PATH": "/"}
    )
    assert warnings[0] == "KSERVEKIT_TRITON_ULR is set and nothing reads it; did you mean KSERVEKIT_TRITON_URL?"
    assert len(warnings) == 2


@pytest.mark.parametrize("settings", config.ALL)
def test_every_setting_explains_itself(settings):
    with open(config.__file__) as file:
        source = file.read()
    for field in dataclasses.fields(settings):
        _, _, after = source.partition(f"    {field.name}: ")
        assert after.split("\n")[1].strip().startswith('"""'), f"{field.name} has no docstring"

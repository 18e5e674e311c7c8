"""The parameters of a request and of its outputs: what may be handed on, and what Triton's extensions make of some."""

from __future__ import annotations

from typing import Any

from kservekit.codec.json_values import check_depth, shown
from kservekit.codec.message import check_name
from kservekit.errors import InvalidInput

_LONGEST_SEQUENCE_ID = 128


def check_parameters(parameters: dict[str, Any], label: str) -> dict[str, Any]:
    """Those given, where their names and values are such as can be handed on; InvalidInput names `label`."""
    for name, value in parameters.items():
        check_name(name, "a parameter's name")
        if type(value) in (dict, list):
            check_depth(value, label)
    return parameters


def check_known(parameters: dict[str, Any]) -> None:
    """InvalidInput where a parameter that every server of the protocol takes alike is not what it takes.

    Triton's "Sequence" and "Schedule Policy" extensions. Its answer depends on the wire: over HTTP it is mostly a 500,
    and by gRPC a time-out below 0 means one of 584,000 years.
    """
    for name in parameters.keys() & _KNOWN.keys():
        fits, expected = _KNOWN[name]
        if not fits(parameters[name]):
            raise InvalidInput(f"parameter {name!r} is {shown(parameters[name])}: expected {expected}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return len(value) <= _LONGEST_SEQUENCE_ID if isinstance(value, str) else _is_whole(value)


_KNOWN = {
    "sequence_id": (_is_sequence, f"a whole number from 0 up, or at most {_LONGEST_SEQUENCE_ID} characters"),
    "sequence_start": (_is_flag, "true or false"),
    "sequence_end": (_is_flag, "true or false"),
    "priority": (_is_whole, "a whole number from 0 up"),
    "timeout": (_is_whole, "whole microseconds from 0 up"),
}

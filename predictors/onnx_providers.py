"""Which of ONNX Runtime's execution providers a session is given, and which it ended up with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kservekit.errors import CannotStart

log = logging.getLogger(__name__)

_SUFFIX = "ExecutionProvider"
_FASTEST_FIRST = ("tensorrt", "cuda", "cpu")


def chosen(wanted: Sequence[str], installed: Sequence[str]) -> list[str]:
    """ONNX Runtime's names for KSERVEKIT_ONNX_PROVIDERS; CannotStart where one that is named is not installed."""
    by_name = {_short(provider): provider for provider in installed}
    if tuple(wanted) == ("auto",):
        return [by_name[name] for name in _FASTEST_FIRST if name in by_name]
    names = [_short(name) for name in wanted]
    if not names or not by_name.keys() >= set(names):
        missing = [name for name in names if name not in by_name]
        raise CannotStart(
            f"KSERVEKIT_ONNX_PROVIDERS is {','.join(wanted)!r}: expected auto, or some of {', '.join(by_name)}, which "
            f"are what the installed ONNX Runtime has{_way_out(missing)}"
        )
    return [by_name[name] for name in names]


def check_in_use(wanted: Sequence[str], given: Sequence[str], in_use: Sequence[str]) -> None:
    """Says in the log which work; CannotStart where one that was named does not.

    A provider can be installed and not work, where the driver or a library is missing: ONNX Runtime goes on without it.
    """
    lost = [_short(provider) for provider in given if provider not in in_use]
    log.info("ONNX Runtime runs the model with %s", ", ".join(map(_short, in_use)))
    if not lost:
        return
    reason = "installed, and does not start: its driver or a library is missing, as the lines above say"
    if tuple(wanted) != ("auto",):
        raise CannotStart(
            f"KSERVEKIT_ONNX_PROVIDERS is {','.join(wanted)!r}, and {', '.join(lost)} is {reason}; mend that, or "
            "set it to auto to go on without"
        )
    log.warning("%s is %s; the model runs without it", ", ".join(lost), reason)


def _short(provider: str) -> str:
    """`CUDAExecutionProvider`, in whatever case, is `cuda`."""
    return provider.lower().removesuffix(_SUFFIX.lower())


def _way_out(missing: Sequence[str]) -> str:
    if {"cuda", "tensorrt"} & set(missing):
        return "; for a GPU: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    return ""

"""A request and its answer, whatever the wire: what every codec reads into and writes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kservekit.errors import InvalidInput, ModelError, PayloadTooLarge
from kservekit.tensors import Tensors

TIMEOUT_HEADER = "kservekit-timeout-ms"
"""REST: how long the caller waits, in milliseconds; what grpc-timeout is on gRPC."""

MOST_TENSORS = 256
"""Of one request, where a server does not say otherwise (KSERVEKIT_MAX_TENSORS)."""


def check_count(count: int, what: str, limit: int) -> None:
    """InvalidInput where a request has more inputs or requested outputs than are worth a look."""
    if count > limit:
        raise InvalidInput(f"{count} {what}: expected at most {limit} (KSERVEKIT_MAX_TENSORS)")


MOST_JSON_BYTES = 8 * 1024 * 1024
"""Of one request, where a server does not say otherwise (KSERVEKIT_MAX_JSON_BYTES)."""

LONGEST_NAME = 1024
"""Bytes of a name or an id from outside. Backends quote them in their errors, which gRPC carries in a header."""


def check_name(name: str, what: str) -> str:
    """The name; InvalidInput where it is longer than any that means something."""
    # A character has at most four bytes.
    if len(name) > LONGEST_NAME // 4 and (length := len(name.encode())) > LONGEST_NAME:
        raise InvalidInput(f"{what} is {length} bytes long: expected at most {LONGEST_NAME}")
    return name


def check_text_size(size: int, limit: int, what: str, instead: str) -> None:
    """PayloadTooLarge where more has to be read value by value than one request may take of the process."""
    if size > limit:
        raise PayloadTooLarge(
            f"{what} over {limit} bytes, the limit of this server (KSERVEKIT_MAX_JSON_BYTES): {instead}"
        )


def check_lengths(size: int, limit: int) -> None:
    """The same for the lengths of raw BYTES elements, together for all of a request's tensors."""
    check_text_size(size, limit, "the lengths of the request's BYTES elements are", "send fewer elements a request")


@dataclass(slots=True)
class Request:
    tensors: Tensors
    """Raw tensors, by gRPC and in REST's binary part, are read-only views of the request's bytes: copy before you write
    in place. Those that came as JSON or as typed contents are yours."""
    model: str = ""
    version: str = ""
    """Empty: the server's choice."""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Requested outputs and the parameters of each; empty: all of them."""
    binary_outputs: bool = False
    """REST only: whether outputs come back as binary where the request does not say so of each."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Header names in lower case; gRPC metadata on gRPC."""
    tenant: str = ""
    """Whom the limits count: whom the header names that KSERVEKIT_TENANT_HEADER says, or else the principal."""
    principal: Any = None
    """Who asks, proven: a kservekit.identity.Principal, or None."""
    deadline: float = math.inf
    """The moment on time.monotonic() after which nobody waits for the answer."""
    gpu_tensors: dict[str, Any] = field(default_factory=dict)
    """More tensors, for a backend: what lies on a GPU, as its library has it (DLPack or the CUDA array interface)."""
    source: Source | None = None
    """For a model that was written for another server."""


Source = tuple[Callable[[Request, bytes], Any], bytes]
"""What makes another server's own form of a request, and of what bytes."""


@dataclass(slots=True)
class Beside:
    """What a model that was written for another server says beside its tensors."""

    id: str = ""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The parameters of each output that has some."""
    headers: dict[str, str] = field(default_factory=dict)
    """For REST alone."""
    typed: bool = False
    """gRPC: whether its tensors are to travel as typed contents, as it gave them."""


@dataclass(slots=True)
class Answer:
    tensors: Tensors
    model: str = ""
    version: str = ""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    beside: Beside | None = None

    def only(self, outputs: Mapping[str, Any]) -> Answer:
        """The requested outputs in the order of the request; InvalidInput for one that there is not."""
        if outputs:
            unknown = [name for name in outputs if name not in self.tensors]
            if unknown:
                unknown_names, names = (", ".join(map(repr, found)) for found in (unknown, self.tensors))
                raise InvalidInput(f"unknown output {unknown_names}: this model gives {names}")
            self.tensors = {name: self.tensors[name] for name in outputs}
        return self

    def rows(self) -> int:
        """The outputs' common first dimension; ModelError where they have none in common."""
        count = common_rows(self.tensors)
        if count is None:
            raise ModelError(
                f"v1 answers in rows, and these outputs share no first dimension: {shapes(self.tensors)}; ask by v2"
            )
        return count


def common_rows(tensors: Tensors) -> int | None:
    """Their first dimension; None where they have none in common."""
    lengths = {array.shape[0] if array.ndim else None for array in tensors.values()}
    return lengths.pop() if len(lengths) == 1 else None


def shapes(tensors: Tensors) -> str:
    """Each by its name, for an error's text."""
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array in tensors.items()) or "none"

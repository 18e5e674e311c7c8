"""What stays on this machine goes by no proxy."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = ("127.0.0.1", "localhost")


def without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with loopback among what its proxies, if it has any, are not for."""
    found = dict(environ)
    # Both spellings have readers; gRPC's own, where it is set, keeps it from looking at the others.
    for variable in ("no_proxy", "NO_PROXY", *({"no_grpc_proxy"} & environ.keys())):
        listed = [name for name in environ.get(variable, "").split(",") if name.strip()]
        if "*" not in listed:
            found[variable] = ",".join([*listed, *(name for name in NAMES if name not in listed)])
    return found

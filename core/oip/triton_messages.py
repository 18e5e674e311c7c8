"""tritonclient's gRPC messages, imported so that KServe's live beside them in one process.

Both packages register the protobuf package `inference`, and protobuf's default pool takes a name once
(kserve#3099, open since 2023): whichever is imported second fails. So tritonclient.grpc is imported
while the default pool is a private one, and the default is put back at once. KServe keeps the default.

With protobuf's pure Python implementation the message builder holds a symbol database of its own, which
has to be swapped too. That name is private to protobuf: where it is gone, the import says so.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pool, symbol_database
from google.protobuf.internal import api_implementation, builder

_TRITON = "tritonclient.grpc"


@contextlib.contextmanager
def _private_pool() -> Iterator[None]:
    pool = descriptor_pool.DescriptorPool()
    default = descriptor_pool.Default
    symbols = getattr(builder, "_sym_db", None)
    swap_symbols = api_implementation.Type() == "python"
    if swap_symbols and symbols is None:
        raise ImportError(
            "protobuf runs in pure Python, and this version of it leaves no way to keep tritonclient.grpc's "
            "messages apart from KServe's (kserve#3099); unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, "
            "so that protobuf takes its default implementation (upb)"
        )
    descriptor_pool.Default = lambda: pool
    if swap_symbols:
        builder._sym_db = symbol_database.SymbolDatabase(pool=pool)
    try:
        yield
    finally:
        descriptor_pool.Default = default
        if swap_symbols:
            builder._sym_db = symbols


def _import() -> tuple[Any, Any, Any]:
    already = sys.modules.get(f"{_TRITON}.service_pb2")
    if already is None:
        with _private_pool():
            from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
    else:
        from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
    if service_pb2.DESCRIPTOR.pool is descriptor_pool.Default():
        if already is not None:
            raise ImportError(
                f"{_TRITON} was imported before kservekit.oip, and its messages now hold the names that KServe's need "
                "(kserve#3099); import kservekit.oip or kservekit.serving first, and tritonclient.grpc after it"
            )
        raise ImportError(
            f"{_TRITON} registered its messages in protobuf's default pool although a private one stood there: this "
            f"protobuf ({api_implementation.Type()}) cannot keep them apart from KServe's (kserve#3099); "
            "install protobuf>=6.33,<7 and unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
        )
    return service_pb2, service_pb2_grpc, model_config_pb2


messages, stubs, model_config = _import()
"""tritonclient's service_pb2, service_pb2_grpc and model_config_pb2."""

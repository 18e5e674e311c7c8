"""Our ModelServer: KServe's constructor, flags and ports around our own data plane, and the life of the process."""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import inspect
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import kserve
import uvicorn
from kserve.model_server import args as flags_of_this_process
from kserve.model_server import parser as kserve_parser
from kserve.protocol.rest.server import _RefreshingServer  # keeps the TLS context in step with its files

from kservekit import config
from kservekit.errors import CannotStart, KServeKitError
from kservekit.serving import grpc as grpc_server
from kservekit.serving.dataplane import DataPlane
from kservekit.serving.model import ArrayModel, Transformer
from kservekit.serving.rest import RestApp

log = logging.getLogger(__name__)

Target: TypeAlias = kserve.Model | Callable[[str], kserve.Model]
"""A model, its class, or anything that makes one when it is called with the model's name."""


class ModelServer(kserve.ModelServer):  # type: ignore[misc]
    """As kserve.ModelServer, with the same arguments; `flags` are KServe's, parsed."""

    def __init__(self, *, flags: Any = flags_of_this_process, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.flags = flags
        self.settings = config.read(config.ServerSettings)
        self.revision = os.environ.get("K_REVISION") or self.settings.revision or "unknown"
        self.plane = DataPlane(self.registered_models, check_predictors=flags.enable_predictor_health_check)

    def start(self, models: Sequence[kserve.Model]) -> None:
        """Serves until SIGTERM or SIGINT; a second signal ends at once. CannotStart for all that is in the way."""
        if self.workers > 1:
            raise CannotStart(f"--workers is {self.workers}: expected 1; scale by replicas (minReplicas, maxReplicas)")
        for model in models:
            self.register_model(model)
            if isinstance(model, Transformer):
                _ = model.backend  # a transformer without a predictor should fail now, not at the first request
        with asyncio.Runner(loop_factory=_loop_factory(self.event_loop)) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        threads = self.max_asyncio_workers or min(32, (os.cpu_count() or 1) + 4)
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="handler"))
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: os._exit(1) if stop.is_set() else stop.set())
        listener = _listen(self.settings.host, self.http_port)
        rest = _Rest(self._uvicorn_config())
        grpc = None
        if self.enable_grpc:
            grpc = await grpc_server.start(
                grpc_server.InferenceService(self.plane, self.revision, server_timing=self.settings.server_timing),
                self.settings.host,
                self.grpc_port,
                max_send_bytes=self.flags.grpc_max_send_message_length,
                max_receive_bytes=self.flags.grpc_max_receive_message_length,
            )
        serving = asyncio.create_task(rest.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        try:
            # Listening comes before loading, so that a long load does not look dead to a liveness probe.
            loading = asyncio.create_task(self._load())
            await asyncio.wait({loading, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                log.info("serving %s on http %s, grpc %s", self.plane.names(), self.http_port, self.grpc_port)
                await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.plane.draining = True
            rest.should_exit = True
            await asyncio.gather(serving, *([grpc.stop(self.grace_period)] if grpc else []))
            stopping.cancel()
            for model in self.registered_models.get_models().values():
                if isinstance(model, ArrayModel):
                    await model.close()
                model.stop()

    async def _load(self) -> None:
        for name, model in self.registered_models.get_models().items():
            if model.ready:
                continue
            try:
                loaded = await asyncio.to_thread(model.load)
                if inspect.isawaitable(loaded):
                    await loaded
            except KServeKitError:
                raise
            except Exception as error:
                raise CannotStart(f"model {name!r} does not load: {type(error).__name__}: {error}") from error
            if not model.ready:
                raise CannotStart(f"model {name!r} does not load: its load() left ready at False")

    def _uvicorn_config(self) -> uvicorn.Config:
        app: Any = RestApp(self.plane, self.settings, self.revision)
        if self.access_log_format:
            try:
                from asgi_logger import AccessLoggerMiddleware
            except ImportError:
                raise CannotStart("--access_log_format needs asgi-logger: pip install 'kserve[logging]'") from None
            app = AccessLoggerMiddleware(app, format=self.access_log_format)
        return uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=self.grace_period,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            server_header=False,
        )


class _Rest(_RefreshingServer):  # type: ignore[misc]
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the ModelServer's: it stops REST and gRPC together


def flags_parser() -> argparse.ArgumentParser:
    """KServe's own flags, as `serve` reads them."""
    found: argparse.ArgumentParser = kserve_parser
    return found


def serve(*targets: Target, argv: Sequence[str] | None = None) -> None:
    """Serves one or more models with KServe's flags, from the command line where `argv` is None.

    A class or factory is called with --model_name. Prints what is in the way and exits with 1 where
    it cannot start.
    """
    flags, unknown = flags_parser().parse_known_args(argv)
    try:
        warnings = config.check()
        server = ModelServer(
            flags=flags,
            **{
                name: getattr(flags, name)
                for name in inspect.signature(kserve.ModelServer.__init__).parameters
                if hasattr(flags, name)
            },
            predictor_config=kserve.PredictorConfig(
                predictor_host=flags.predictor_host,
                predictor_protocol=flags.predictor_protocol,
                predictor_use_ssl=flags.predictor_use_ssl,
                predictor_request_timeout_seconds=flags.predictor_request_timeout_seconds,
                predictor_request_retries=flags.predictor_request_retries,
                predictor_health_check=flags.enable_predictor_health_check,
            ),
        )
        if unknown:
            warnings.append(f"KServe has no flag {' '.join(unknown)}; kservekit serve --help lists them")
        for warning in warnings:
            log.warning("%s", warning)
        server.start([target if isinstance(target, kserve.Model) else target(flags.model_name) for target in targets])
    except KServeKitError as error:
        sys.exit(f"kservekit: {error}")


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """KServe's --event-loop: auto takes uvloop where it is installed."""
    if name != "asyncio":
        with contextlib.suppress(ImportError):
            import uvloop

            return uvloop.new_event_loop
    return None


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"HTTP port {port} on {host} cannot be bound ({error.strerror}); choose another with --http_port"
        ) from None
    listener.set_inheritable(True)
    return listener

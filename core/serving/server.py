"""Our ModelServer: KServe's constructor, flags and ports around our own data plane, and the life of the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import kserve
import uvicorn
from kserve.model_server import args as flags_of_this_process
from kserve.protocol.rest.server import _RefreshingServer  # keeps the TLS context in step with its files

from kservekit import config
from kservekit.errors import CannotStart, KServeKitError
from kservekit.serving import grpc as grpc_service
from kservekit.serving import pool, workers
from kservekit.serving.caching import response_cache
from kservekit.serving.dataplane import DataPlane, load_model
from kservekit.serving.flags import check, flags_parser, keep_our_loggers, log_to_stderr
from kservekit.serving.grpc_http2 import GrpcServer, Limits
from kservekit.serving.http_protocol import limited_protocol
from kservekit.serving.kserve_types import keep_off_the_loop
from kservekit.serving.model import ArrayModel, Transformer, hooks_are_ours
from kservekit.serving.rest import RestApp

log = logging.getLogger(__name__)

Target: TypeAlias = kserve.Model | Callable[[str], kserve.Model | list[kserve.Model]]
"""A model, its class, or anything that makes one or several when it is called with the model's name."""

SWITCH_INTERVAL_S = 0.0005
"""How long a handler in pure Python may hold the GIL while the event loop waits: a tenth of Python's own default,
which under four such handlers took 193 ms for a liveness probe, and takes 24 ms so."""


class ModelServer(kserve.ModelServer):  # type: ignore[misc]
    """As kserve.ModelServer, with the same arguments; `flags` are KServe's, parsed."""

    def __init__(self, *, flags: Any = flags_of_this_process, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.flags = flags
        self.settings = config.read(config.ServerSettings)
        revision = os.environ.get("K_REVISION") or self.settings.revision
        # gRPC's metadata holds no more.
        self.revision = (revision or "unknown").encode("ascii", "backslashreplace").decode()
        self.plane = DataPlane(
            self.registered_models,
            self.settings,
            config.read(config.IdentitySettings),
            check_predictors=flags.enable_predictor_health_check,
            cache=response_cache(revision),
        )
        self.worker: workers.Worker | None = None

    def made_anew_by(self, factories: Mapping[str, Callable[[], kserve.Model]]) -> None:
        """How to make the models once more, by their names, where they are to be loaded anew."""

        def anew(name: str) -> kserve.Model | None:
            return _prepared(factories[name]()) if name in factories else None

        self.plane.anew = anew

    def start(self, models: Sequence[kserve.Model]) -> None:
        """Serves until SIGTERM or SIGINT; a second signal ends at once. CannotStart for all that is in the way."""
        if self.workers > 1 and self.worker is None:
            raise CannotStart(
                f"--workers is {self.workers}, and this model is made already: expected 1, or a class or factory given "
                "to serve(), which each worker calls for itself"
            )
        if self.enable_grpc and self.grpc_port == self.http_port:
            raise CannotStart(f"--http_port and --grpc_port are both {self.http_port}: expected two")
        for model in models:
            if model.name in self.plane.names():
                raise CannotStart(
                    f"two models are called {model.name!r}: give each a name, as in serve(A('a'), B('b'))"
                )
            self.register_model(_prepared(model))
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        pool.resize(self.max_asyncio_workers or 0, self.settings.handler_queue)
        with asyncio.Runner(loop_factory=_loop_factory(self.event_loop)) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="worker"))
        stop = Stop(loop)
        if self.worker is not None:
            self.worker.watch_supervisor(loop, stop.now)
        stopping = asyncio.create_task(stop.asked.wait())
        loading = asyncio.create_task(self._load())
        listening: list[Callable[[], Awaitable[object]]] = []
        try:
            # A server listens before it loads, so that a long load does not look dead to a liveness probe. A worker
            # listens after it: its fellows answer meanwhile, and nobody should meet the one that cannot yet.
            if self.worker is None:
                serving: asyncio.Task[Any] = await self._listen(listening)
            else:
                await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                serving = await self._listen(listening) if loading.done() and not loading.exception() else stopping
            await asyncio.wait({loading, stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                log.info("serving %s on http %s, grpc %s", self.plane.names(), self.http_port, self.grpc_port)
                if self.worker is not None:
                    self.worker.ready()
                await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
                if stop.by == signal.SIGTERM:
                    await self._lame_duck()
        finally:
            self.plane.draining = self.plane.closing = True
            await asyncio.gather(*(close() for close in listening))
            stopping.cancel()
            if loading.done():  # else a model is in the midst of it, in a thread that ends with the process
                for model in self.registered_models.get_models().values():
                    if isinstance(model, ArrayModel):
                        await model.close()
                    model.stop()
            if self.plane.cache is not None:
                await self.plane.cache.close()

    async def _listen(self, listening: list[Callable[[], Awaitable[object]]]) -> asyncio.Task[None]:
        """REST and gRPC; adds what closes each of them. The task ends when REST does."""
        shared = self.worker is not None
        if self.enable_grpc:
            listener = workers.listen(self.settings.host, self.grpc_port, flag="--grpc_port", shared=shared)
            grpc = self._grpc_of_ours()
            await grpc.start(listener)
            listening.append(lambda: grpc.stop(self.grace_period))
        listener = workers.listen(self.settings.host, self.http_port, flag="--http_port", shared=shared)
        rest = _Rest(self._uvicorn_config())
        serving = asyncio.create_task(rest.serve(sockets=[listener]))

        async def close() -> None:
            rest.should_exit = True
            await serving

        listening.append(close)
        return serving

    def _grpc_of_ours(self) -> GrpcServer:
        service = grpc_service.InferenceService(self.plane, server_timing=self.settings.server_timing)
        limits = Limits(
            # KServe's default is 8 MiB, an eighth of what REST takes.
            message_bytes=max(self.flags.grpc_max_receive_message_length, self.settings.max_body_bytes),
            reply_bytes=max(self.flags.grpc_max_send_message_length, self.settings.max_body_bytes),
            header_bytes=self.settings.max_header_bytes,
            message_seconds=self.settings.body_timeout_s,
            reply_seconds=self.settings.timeout_s,
            silent_seconds=self.settings.header_timeout_s,
        )
        always = {"kservekit-revision": self.revision}
        return GrpcServer(*grpc_service.methods(service), limits, always=always, admit=service.admit)

    async def _lame_duck(self) -> None:
        """Not ready, and still serving: until those who send requests here have noticed."""
        self.plane.draining = True
        log.info("SIGTERM: not ready from now on, and serving for another %s ms", self.settings.lame_duck_ms)
        await asyncio.sleep(self.settings.lame_duck_ms / 1000)

    async def _load(self) -> None:
        for name, model in self.registered_models.get_models().items():
            if not model.ready:
                await load_model(name, model)

    def _uvicorn_config(self) -> uvicorn.Config:
        settings = self.settings
        app: Any = RestApp(self.plane, settings, self.revision)
        if self.access_log_format:
            try:
                from asgi_logger import AccessLoggerMiddleware
            except ImportError:
                raise CannotStart("--access_log_format needs asgi-logger: pip install 'kserve[logging]'") from None
            app = AccessLoggerMiddleware(app, format=self.access_log_format)
        return uvicorn.Config(
            app,
            http=limited_protocol(
                settings.max_header_bytes,
                settings.header_timeout_s,
                settings.body_timeout_s,
                reply_timeout_s=settings.timeout_s,
                revision=self.revision.encode(),
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=bool(self.access_log_format),  # which alone says where a caller is
            timeout_graceful_shutdown=self.grace_period,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            server_header=False,
        )


class Stop:
    """SIGTERM, SIGINT and SIGQUIT of this process: the first asks, the second ends at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked = asyncio.Event()
        self.by = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(number, self.now, number)

    def now(self, number: int = signal.SIGTERM) -> None:
        if self.asked.is_set():
            os._exit(1)
        self.by = number
        self.asked.set()


class _Rest(_RefreshingServer):  # type: ignore[misc]
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the ModelServer's: it stops REST and gRPC together


def serve(*targets: Target, argv: Sequence[str] | None = None) -> None:
    """Serves one or more models with KServe's flags, from the command line where `argv` is None.

    A class or factory is called with --model_name, in each worker where --workers is above 1. Prints what is in
    the way and exits with 1 where it cannot start.
    """
    flags, unknown = flags_parser().parse_known_args(argv)
    try:
        warnings = config.check() + check(flags)
        log_to_stderr(flags)
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
        keep_our_loggers()
        server.worker = workers.this_worker()
        if unknown and server.worker is None:
            warnings.append(f"KServe has no flag {' '.join(unknown)}; kservekit serve --help lists them")
        for warning in warnings:
            log.warning("%s", warning)
        made = any(isinstance(target, kserve.Model) for target in targets)
        if flags.workers > 1 and server.settings.repository_api:
            raise CannotStart(
                "--workers is above 1 and KSERVEKIT_REPOSITORY_API on: a request reaches one worker alone"
            )
        if flags.workers > 1 and server.worker is None and not made:
            ports = {"--http_port": server.http_port}
            if server.enable_grpc:
                ports["--grpc_port"] = server.grpc_port
            sys.exit(workers.supervise(flags.workers, server.settings.host, ports))
        models: list[kserve.Model] = []
        factories: dict[str, Callable[[], kserve.Model]] = {}
        for target in targets:
            found = _made(target, flags.model_name)
            models += found
            if not isinstance(target, kserve.Model):
                for place, model in enumerate(found):
                    factories[model.name] = functools.partial(_made_again, target, flags.model_name, place)
        server.made_anew_by(factories)
        server.start(models)
    except KServeKitError as error:
        sys.exit(f"kservekit: {error}")


def _made(target: Target, model_name: str) -> list[kserve.Model]:
    found = target if isinstance(target, kserve.Model) else target(model_name)
    return found if isinstance(found, list) else [found]


def _made_again(target: Target, model_name: str, place: int) -> kserve.Model:
    return _made(target, model_name)[place]


def _prepared(model: kserve.Model) -> kserve.Model:
    if not hooks_are_ours(model):
        keep_off_the_loop(model)
    if isinstance(model, Transformer):
        _ = model.backend  # a transformer without a predictor should fail now, not at the first request
    return model


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """KServe's --event-loop: auto takes uvloop where it is installed."""
    if name != "asyncio":
        with contextlib.suppress(ImportError):
            import uvloop

            return uvloop.new_event_loop
    return None

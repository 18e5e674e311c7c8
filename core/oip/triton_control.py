"""What an operator asks of a running Triton: its models, loading and unloading, statistics, trace and log settings.

Triton's "Model Repository", "Statistics", "Trace" and "Logging" extensions, over gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kservekit import errors
from kservekit.oip.backend import checked_host
from kservekit.oip.grpc import GrpcBackend
from kservekit.oip.grpc_channel import GrpcFailure
from kservekit.oip.triton_messages import messages

LOOK_S = 0.05
"""How often a model is looked at that is being unloaded."""

NANOSECONDS_OF_A_MILLISECOND = 1e6


@dataclass(frozen=True)
class ModelState:
    name: str
    version: str
    """Empty for a model of the repository that was never loaded."""
    state: str
    """READY, LOADING, UNLOADING or UNAVAILABLE; empty where Triton does not say."""
    reason: str


@dataclass(frozen=True)
class ModelStatistics:
    """Since the model was loaded. Times are means of a request, in milliseconds."""

    name: str
    version: str
    requests: int
    failures: int
    inferences: int
    """Rows: a request of eight counts as eight."""
    executions: int
    """Runs of the model; fewer than requests where Triton batches."""
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    cache_hits: int
    cache_misses: int
    batches: Mapping[int, int]
    """Runs by their number of rows."""


Setting = str | int | bool | list[str]


class TritonControl:
    """Its calls raise the ServingError that Triton's answer stands for, with Triton's own words: they are for whoever
    runs it, and not for a model's callers.
    """

    def __init__(self, host: str, *, use_ssl: bool = False, timeout_s: float = 60.0) -> None:
        self._wire = GrpcBackend(checked_host(host), use_ssl=use_ssl, timeout_s=timeout_s)

    async def index(self, *, ready: bool = False) -> list[ModelState]:
        """What is in the repository, or what of it is ready."""
        reply = await self._ask("RepositoryIndex", messages.RepositoryIndexRequest(ready=ready))
        return [ModelState(item.name, item.version, item.state, item.reason) for item in reply.models]

    async def load(self, model: str, *, config_json: str = "") -> None:
        """Loads it, or loads anew what changed on disk; requests meanwhile find the old one. `config_json` stands in
        for its config.pbtxt. It needs `--model-control-mode=explicit`. ModelNotFound for a name that nothing has."""
        request = messages.RepositoryModelLoadRequest(model_name=model)
        if config_json:
            request.parameters["config"].string_param = config_json
        try:
            await self._ask("RepositoryModelLoad", request)
        except errors.ModelError as error:
            if "failed to poll" not in error.message:
                raise
            await self._check_is_there(model)
            raise errors.ModelError(
                f"{error.message}: Triton cannot read its folder or its config.pbtxt; Triton's log has the reason, and "
                "`kservekit repository check` may find it"
            ) from error

    async def unload(self, model: str, *, with_dependents: bool = False) -> None:
        """Returns once what was in flight is answered and no version of the model is left; DeadlineExceeded where that
        takes longer than a call may, ModelNotFound for a name that nothing has. `with_dependents`: an ensemble's
        models, too."""
        deadline = time.monotonic() + self._wire.timeout_s
        await self._check_is_there(model)
        request = messages.RepositoryModelUnloadRequest(model_name=model)
        request.parameters["unload_dependents"].bool_param = with_dependents
        await self._ask("RepositoryModelUnload", request)
        while left := [item for item in await self.index() if item.name == model and _is_there(item)]:
            if time.monotonic() > deadline:
                raise errors.DeadlineExceeded(
                    f"model {model!r}, version {left[0].version}, is {left[0].state} after {self._wire.timeout_s:g} s: "
                    "requests are still in flight"
                )
            await asyncio.sleep(LOOK_S)

    async def statistics(self, model: str = "", version: str = "") -> list[ModelStatistics]:
        """Of one model or of all that are ready."""
        reply = await self._ask("ModelStatistics", messages.ModelStatisticsRequest(name=model, version=version))
        return [_statistics(item) for item in reply.model_stats]

    async def trace_settings(
        self, model: str = "", changes: Mapping[str, Setting | None] | None = None
    ) -> dict[str, Setting]:
        """Those of one model or the server's, after the changes; None takes a setting back to the server's own.

        InvalidInput for a name that Triton does not have, which it would pass over in silence.
        """
        if changes:
            _check_names("trace", changes, await self.trace_settings(model))
        request = messages.TraceSettingRequest(model_name=model)
        for name, value in (changes or {}).items():
            values = value if isinstance(value, list) else [] if value is None else [_text(value)]
            request.settings[name].value.extend(values)
        reply = await self._ask("TraceSetting", request)
        found: dict[str, Setting] = {}
        for name, setting in sorted(reply.settings.items()):
            found[name] = setting.value[0] if len(setting.value) == 1 else list(setting.value)
        return found

    async def log_settings(self, changes: Mapping[str, str | int | bool] | None = None) -> dict[str, Setting]:
        """Those of the server, after the changes; InvalidInput for a name that Triton does not have."""
        if changes:
            _check_names("log", changes, await self.log_settings())
        request = messages.LogSettingsRequest()
        for name, value in (changes or {}).items():
            if isinstance(value, int) and not 0 <= value < 2**32:
                raise errors.InvalidInput(f"log setting {name!r} is {value}: expected a number from 0 to {2**32 - 1}")
            kind = {bool: "bool_param", int: "uint32_param"}.get(type(value), "string_param")
            setattr(request.settings[name], kind, value)
        reply = await self._ask("LogSettings", request)
        return {
            name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in sorted(reply.settings.items())
        }

    async def close(self) -> None:
        await self._wire.close()

    async def _check_is_there(self, model: str) -> None:
        # One that is loaded, and whose folder has gone since, is in the statistics alone.
        names = {item.name for item in await self.index()} | {item.name for item in await self.statistics()}
        if model not in names:
            raise errors.ModelNotFound(f"Triton's repository has no model {model!r}: it has {_listed(names)}")

    async def _ask(self, method: str, request: Any) -> Any:
        call: Callable[..., Awaitable[Any]] = getattr(self._wire.stub(), method)
        try:
            return await call(request, timeout=self._wire.timeout_s)
        except GrpcFailure as error:
            details = error.details or error.code
            if error.code == "UNAVAILABLE" and not details.startswith("["):
                details = f"Triton at {self._wire.host} cannot be reached: {details}"
            raise errors.from_grpc(error.code, details) from error


def _check_names(kind: str, changes: Iterable[str], known: Collection[str]) -> None:
    for name in changes:
        if name not in known:
            raise errors.InvalidInput(f"Triton has no {kind} setting {name!r}: it has {_listed(known)}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names))) or "none"


def _is_there(item: ModelState) -> bool:
    return item.state not in ("", "UNAVAILABLE")


def _statistics(item: Any) -> ModelStatistics:
    found = item.inference_stats
    return ModelStatistics(
        item.name,
        item.version,
        found.success.count,
        found.fail.count,
        item.inference_count,
        item.execution_count,
        _mean_ms(found.queue),
        _mean_ms(found.compute_input),
        _mean_ms(found.compute_infer),
        _mean_ms(found.compute_output),
        found.cache_hit.count,
        found.cache_miss.count,
        {batch.batch_size: batch.compute_infer.count for batch in item.batch_stats},
    )


def _mean_ms(duration: Any) -> float:
    return float(duration.ns / duration.count / NANOSECONDS_OF_A_MILLISECOND) if duration.count else 0.0


def _text(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

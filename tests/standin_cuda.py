"""What a GPU would do, done on the host: CUDA's runtime, for tests where there is no GPU.

Each function has the name, the parameters and the answer (a status and its results) of the real module's, which has to
have it. As on a GPU nothing is done before its stream is waited for, only in memory that was asked for, and only on the
GPU that it is on.
"""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import NonCallableMock

import numpy as np
from cuda.bindings import runtime

from kservekit.cuda import Cuda

Shape = tuple[int, ...]
OK = runtime.cudaError_t.cudaSuccess
INVALID = runtime.cudaError_t.cudaErrorInvalidValue


LEGACY, PER_THREAD = 1, 2
"""The streams that every process has."""


class Gpu:
    """CUDA's runtime on the host's own memory, with `devices` GPUs."""

    def __init__(self, memory: int = 2**24, *, devices: int = 1) -> None:
        self.memory, self.devices = memory, devices
        self.blocks: dict[int, Any] = {}
        self.home: dict[int, int] = {}
        """Of each block and of each stream: its GPU."""
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.always: dict[int, list[Callable[[], None]]] = {LEGACY: [], PER_THREAD: []}
        self.waits_for_legacy: set[int] = set()
        self.made_streams = 1000
        self.thread = threading.local()
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.failure = OK
        self.lock = threading.Lock()
        self.module: Any = NonCallableMock(spec_set=runtime)
        for name in dir(type(self)):
            if name.startswith("cuda") and name != "cuda":
                real, ours = getattr(runtime, name), getattr(self, name)
                assert inspect.signature(real).parameters.keys() == inspect.signature(ours).parameters.keys(), name
                setattr(self.module, name, ours)
        for name in (
            "cudaError_t",
            "cudaMemcpyKind",
            "cudaStreamCaptureMode",
            "cudaHostAllocDefault",
            "cudaStreamNonBlocking",
            "cudaGetErrorString",
            "CUDA_IPC_HANDLE_SIZE",
        ):
            setattr(self.module, name, getattr(runtime, name))
        self.cuda = Cuda(self.module)

    @property
    def used(self) -> int:
        return sum(map(ctypes.sizeof, self.blocks.values())) + len(self.streams) + len(self.graphs)

    @property
    def device(self) -> int:
        """The one that this thread's calls go to."""
        return getattr(self.thread, "device", 0)

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        self.captured.get(stream, (self.streams | self.always)[stream]).append(work)

    def wait(self, stream: int, other: int) -> None:
        """What comes on the one goes on when all that is on the other now is done."""
        self.queue(stream, lambda: self.finish(other))

    def finish(self, stream: int) -> None:
        queues = self.always if stream in self.always else self.streams
        work, queues[stream] = queues[stream], []
        for step in work:
            step()

    def opened(self, handle: bytes) -> Any:
        """The memory that a cudaIpcMemHandle_t stands for; None where there is none such any more."""
        return self.blocks.get(int.from_bytes(handle, "little"))

    def array(self, address: int, dtype: Any, shape: Shape) -> np.ndarray:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.holds(address, count), "outside of what was asked for"
        raw = (ctypes.c_uint8 * count).from_address(address)
        return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)

    def holds(self, address: int, count: int) -> bool:
        return any(at <= address and address + count <= at + ctypes.sizeof(block) for at, block in self.blocks.items())

    def cudaGetDeviceCount(self):
        return OK, self.devices

    def cudaGetDeviceProperties(self, device):
        found = runtime.cudaDeviceProp()
        found.name, found.major, found.minor = b"Stand-in".ljust(256, b"\0"), 9, 0
        return OK, found

    def cudaGetDevice(self):
        return OK, self.device

    def cudaSetDevice(self, device):
        if not 0 <= device < self.devices:
            return (runtime.cudaError_t.cudaErrorInvalidDevice,)
        self.thread.device = device
        return (OK,)

    def cudaPointerGetAttributes(self, ptr):
        at = next(at for at, block in self.blocks.items() if at <= ptr < at + ctypes.sizeof(block))
        found = runtime.cudaPointerAttributes()
        found.device = self.home[at]
        return OK, found

    def cudaIpcGetMemHandle(self, devPtr):
        if devPtr not in self.blocks:
            return INVALID, None
        handle = runtime.cudaIpcMemHandle_t()
        ctypes.memmove(handle.getPtr(), devPtr.to_bytes(runtime.CUDA_IPC_HANDLE_SIZE, "little"), 64)
        return OK, handle

    def cudaMalloc(self, size):
        with self.lock:
            mine = [block for at, block in self.blocks.items() if self.home[at] == self.device]
            if size > self.memory - sum(map(ctypes.sizeof, mine)):
                return runtime.cudaError_t.cudaErrorMemoryAllocation, None
            block = (ctypes.c_uint8 * size)()
            ctypes.memset(block, 0xA5, size)
            self.blocks[ctypes.addressof(block)] = block
            self.home[ctypes.addressof(block)] = self.device
        return OK, ctypes.addressof(block)

    def cudaHostAlloc(self, size, flags):
        return self.cudaMalloc(size)

    def cudaFree(self, devPtr):
        return (INVALID if self.blocks.pop(devPtr, None) is None else OK,)

    def cudaFreeHost(self, ptr):
        return self.cudaFree(ptr)

    def cudaStreamCreateWithFlags(self, flags):
        with self.lock:
            self.made_streams += 1
            self.streams[self.made_streams] = []
            self.home[self.made_streams] = self.device
            if flags == runtime.cudaStreamDefault:
                self.waits_for_legacy.add(self.made_streams)
        return OK, runtime.cudaStream_t(self.made_streams)

    def cudaStreamCreate(self):
        return self.cudaStreamCreateWithFlags(runtime.cudaStreamDefault)

    def cudaStreamDestroy(self, stream):
        del self.streams[int(stream)]
        return (OK,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        on_host = {
            runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost: dst,
            runtime.cudaMemcpyKind.cudaMemcpyHostToDevice: src,
        }
        if not all(self.holds(at, count) for at in (dst, src) if at != on_host.get(kind)):
            return (INVALID,)
        if self.home[int(stream)] != self.device:
            return (runtime.cudaError_t.cudaErrorInvalidResourceHandle,)
        self.queue(int(stream), lambda: ctypes.memmove(dst, src, count))
        return (OK,)

    def cudaStreamSynchronize(self, stream):
        if int(stream) in self.waits_for_legacy:
            self.finish(LEGACY)
        self.finish(int(stream))
        return (self.failure,)

    def cudaDeviceSynchronize(self):
        for stream in (*self.always, *self.streams):
            self.finish(stream)
        return (self.failure,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.captured[int(stream)] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        work = self.captured.pop(int(stream))
        if None in work:
            return runtime.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        self.graphs[len(self.graphs) + 1] = work
        return OK, runtime.cudaGraph_t(len(self.graphs))

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs[int(graph) + 100] = self.graphs[int(graph)]
        return OK, runtime.cudaGraphExec_t(int(graph) + 100)

    def cudaGraphDestroy(self, graph):
        del self.graphs[int(graph)]
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec):
        return self.cudaGraphDestroy(graphExec)

    def cudaGraphLaunch(self, graphExec, stream):
        self.launches += 1
        for step in self.graphs[int(graphExec)]:
            self.queue(int(stream), step)
        return (OK,)

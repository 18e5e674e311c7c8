"""Load by h2load: gRPC for so many seconds on four connections of two streams, or an exact number of requests.

h2load counts every HTTP 200, and a gRPC error is one without a body: so the bytes of the answers are counted, too, and
have to be those of one right answer each.
"""

from __future__ import annotations

import math
import os
import re

from kservekit.benchmarks import load
from kservekit.benchmarks.check import WrongAnswer
from kservekit.benchmarks.load import Load
from kservekit.benchmarks.payloads import Payload

SLOWEST_S = 20
"""What one request may take, before we think that it is stuck."""
SLOWEST_PER_S = 50
"""The same for many: this rate's time."""


def run(payload: Payload, *, wire: str, address: str, seconds: int = 0, requests: int = 0) -> Load:
    """For so many seconds or requests; WrongAnswer where one failed, or was shorter than the answer to one alone."""
    one = _run(payload, wire, address, ["-n1"], limit_s=SLOWEST_S, least_bytes=1)
    how = [f"-D{seconds}"] if seconds else [f"-n{requests}"]
    connections = [f"-c{load.CONNECTIONS}"] if wire != "grpc" else ["-c4", "-m2"]
    limit_s = seconds or requests / SLOWEST_PER_S
    return _run(payload, wire, address, [*how, *connections], limit_s=limit_s, least_bytes=one.data_bytes)


def _run(payload: Payload, wire: str, address: str, how: list[str], *, limit_s: float, least_bytes: int) -> Load:
    if wire == "grpc":
        body, path = payload.grpc(), "inference.GRPCInferenceService/ModelInfer"
        headers = {"content-type": "application/grpc", "te": "trailers"}
    else:
        body, headers = payload.rest(binary=wire == "rest-binary")
        path, how = f"v2/models/{payload.name}/infer", [*how, "--h1"]
    log = load.folder() / f"h2load-{os.getpid()}.tsv"
    command = [
        *("h2load", "-t1", *how),
        f"--data={load.file(f'{payload.name}-{wire}.h2', body)}",
        *(f"--header={key}: {value}" for key, value in headers.items()),
        f"--log-file={log}",
        f"http://{address}/{path}",
    ]
    log.unlink(missing_ok=True)  # h2load appends
    try:
        return parse(load.run(command, seconds=limit_s), log.read_text(), least_bytes=least_bytes)
    finally:
        log.unlink(missing_ok=True)


def parse(output: str, log: str, *, least_bytes: int) -> Load:
    """The summary for the rate, the log (a line a request) for the percentiles, which the summary has not."""
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", output, re.M)
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output)
    data = re.search(r"\((\d+)\) data$", output, re.M)
    if not (rate and counts and data):
        raise WrongAnswer(f"h2load wrote no figures: {output[-300:]!r}")
    succeeded, *wrong = map(int, counts.groups())
    if any(wrong) or not succeeded:
        raise WrongAnswer(f"h2load's requests: {counts[0]}")
    data_bytes = int(data[1])
    if data_bytes < succeeded * least_bytes:
        raise WrongAnswer(
            f"{succeeded} answers to h2load had {data_bytes} bytes: expected {least_bytes} each, so some were errors "
            "(gRPC's come with HTTP 200 and no body)"
        )
    times = sorted(int(line.split("\t")[2]) for line in log.splitlines() if line.split("\t")[1] == "200")
    return Load(succeeded, float(rate[1]), percentile(times, 50) / 1e6, percentile(times, 99) / 1e6, data_bytes)


def percentile(ordered: list[int], percent: int) -> int:
    """The smallest that so many percent do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]

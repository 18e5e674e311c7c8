"""Load over REST by wrk: one thread, eight connections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kservekit.benchmarks import load
from kservekit.benchmarks.check import WrongAnswer
from kservekit.benchmarks.load import Load
from kservekit.benchmarks.payloads import Payload

TIMEOUT_S = 20
"""wrk gives up on an answer after this; stock takes three seconds for a tensor."""
MARK = "kservekit "

# wrk's own summary rounds; `done` has the figures themselves.
SCRIPT = """\
wrk.method = "POST"
local file = io.open(%(body)s, "rb")
wrk.body = file:read("*a")
file:close()
%(headers)s
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'kservekit {"answers": %%d, "us": %%d, "p50_us": %%d, "p99_us": %%d, ' ..
    '"not_2xx": %%d, "broken": %%d, "late": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
"""


def run(payload: Payload, *, binary: bool, address: str, seconds: int) -> Load:
    """WrongAnswer where an answer was not a 2xx, or did not come."""
    body, headers = payload.rest(binary=binary)
    name = f"{payload.name}-{'binary' if binary else 'json'}"
    lua = load.file(f"{name}.lua", script(load.file(f"{name}.body", body), headers).encode())
    command = ["wrk", "-t1", f"-c{load.CONNECTIONS}", f"-d{seconds}s", f"--timeout={TIMEOUT_S}s", f"--script={lua}"]
    url = f"http://{address}/v2/models/{payload.name}/infer"
    return parse(load.run([*command, url], seconds=seconds))


def script(body: Path, headers: Mapping[str, str]) -> str:
    lines = [f"wrk.headers[{json.dumps(key)}] = {json.dumps(value)}" for key, value in headers.items()]
    return SCRIPT % {"body": json.dumps(str(body)), "headers": "\n".join(lines)}


def parse(output: str) -> Load:
    found = next((line for line in output.splitlines() if line.startswith(MARK)), None)
    if found is None:
        raise WrongAnswer(f"wrk wrote no figures: {output[-300:]!r}")
    figures = json.loads(found.removeprefix(MARK))
    for key, what in (("not_2xx", "were no 2xx"), ("broken", "broke off"), ("late", f"took over {TIMEOUT_S} s")):
        if figures[key]:
            raise WrongAnswer(f"of {figures['answers']} answers to wrk {figures[key]} {what}")
    return Load(
        figures["answers"],
        figures["answers"] / figures["us"] * 1e6,
        figures["p50_us"] / 1e6,
        figures["p99_us"] / 1e6,
    )

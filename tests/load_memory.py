"""A run of so many requests, and then of ten times as many; it prints the memory after each, in KiB.

The wire is one that answers at once, and a tenth of a second passes with each request.
"""

import os
import random
import sys
from pathlib import Path

from kservekit.loadtest.payload import Message, Payload
from kservekit.loadtest.recorder import Outcome
from kservekit.loadtest.session import Session
from kservekit.loadtest.shapes import Closed
from kservekit.loadtest.target import Target


class AtOnce:
    target = Target("http://127.0.0.1:1", "m", "v2-json")
    draw = random.Random(1)

    def prepare(self, payload):
        return Message(b"", payload.body)

    def send(self, message, named):
        failed = "HTTP 503" if self.draw.random() < 0.01 else ""
        return Outcome(failed, self.draw.choice(("old", "new")), 10, "read;dur=1.5, total;dur=2.5", attempts=1)


def resident_kib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def run(session, count):
    for _ in range(count):
        session._begin -= 0.1
        session.request(session.elapsed_s - AtOnce.draw.uniform(0.0100, 0.0103))
    print(resident_kib())  # noqa: T201


def main(count):
    session = Session(AtOnce(), [Payload("n", b"x", {})], Closed(1, 1.0), good_ms=12, max_in_flight=1, trace_share=0.1)
    run(session, count)
    run(session, 9 * count)
    assert session.result().asked == 0  # intended starts come by hand
    assert session.result().ended == 10 * count


main(int(sys.argv[1]))

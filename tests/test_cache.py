"""The response cache: the same answer to the same request and to no other, whatever becomes of callers and Redis."""

import asyncio
import hashlib

import numpy as np
import pytest
from calls import WIRES, ask, http

from kservekit.cache import MemoryStore, ResponseCache
from kservekit.cache import digest as digest_module
from kservekit.cache.digest import digest
from kservekit.codec.message import Answer, Request
from kservekit.errors import CannotStart, DeadlineExceeded, ModelError
from kservekit.local.server import LocalServer
from kservekit.serving.caching import response_cache


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Model:
    """Answers y = 2x. `gate` is awaited in each computation."""

    def __init__(self, gate=None):
        self.computed = 0
        self.cancelled = 0
        self.begun = asyncio.Event()
        self.gate = gate

    def of(self, request):
        async def compute():
            self.computed += 1
            self.begun.set()
            try:
                if self.gate is not None:
                    await self.gate()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            return Answer({"y": request.tensors["x"] * 2}, model=request.model, version="1", id=request.id)

        return compute


def request(*values, **named):
    return Request({"x": np.array(values, np.float32)}, model="m", **named)


def cache(store=None, **named):
    return ResponseCache(store or MemoryStore(2**20), **{"ttl_s": 60, **named})


SAME = Request({"x": np.array([1, 2], np.float32), "y": np.array([b"ab", b"c"], object)}, model="m")
OTHERS = {
    "a value": {"x": np.array([1, 3], np.float32)},
    "the datatype": {"x": np.array([1, 2], np.int32)},
    "the shape": {"x": np.array([[1, 2]], np.float32)},
    "the name": {"z": np.array([1, 2], np.float32)},
    "where bytes end": {"x": np.array([1, 2], np.float32), "y": np.array([b"a", b"bc"], object)},
}


@pytest.mark.parametrize("tensors", OTHERS.values(), ids=OTHERS)
def test_other_inputs_have_another_key(tensors):
    assert digest(Request({"y": SAME.tensors["y"], **tensors}), "m") != digest(SAME, "m")


def test_without_blake3_keys_are_made_with_sha256(monkeypatch):
    key = digest(SAME, "m")
    monkeypatch.setattr(digest_module, "_hash", hashlib.sha256)
    assert digest(SAME, "m") != key
    assert len(digest(SAME, "m")) == len(key) == 32


def test_parameters_outputs_and_what_else_is_said_count_and_the_order_of_inputs_does_not():
    key = digest(SAME, "r", "m", "1")
    turned = Request(dict(reversed(SAME.tensors.items())), id="other", deadline=5.0)
    assert digest(turned, "r", "m", "1") == key
    asked = Request(SAME.tensors, outputs={"y": {}})
    told = Request(SAME.tensors, parameters={"temperature": 1})
    others = [digest(SAME, "r", "m", "2"), digest(SAME, "rm", "", "1"), digest(asked, "r", "m", "1")]
    assert len({key, digest(told, "r", "m", "1"), *others}) == 5


def test_a_kept_answer_is_given_again_with_the_requests_own_id():
    async def main():
        events = []
        model, kept = Model(), cache(on_event=lambda event, name: events.append((event, name)))
        for id in ("a", "b"):
            one = request(1, 2, id=id)
            answer = await kept.answer(one, "1", model.of(one))
            assert (answer.id, answer.model, answer.version, answer.tensors["y"].tolist()) == (id, "m", "1", [2, 4])
        assert (model.computed, events) == (1, [("miss", "m"), ("hit", "m")])

    asyncio.run(main())


def test_what_a_caller_does_to_his_answer_reaches_nobody_else():
    async def main():
        model, kept = Model(), cache()
        one = request(1)
        first = await kept.answer(one, "1", model.of(one))
        first.tensors["y"][0] = 99
        first.tensors["more"] = first.tensors["y"]
        second = await kept.answer(one, "1", model.of(one))
        assert {name: array.tolist() for name, array in second.tensors.items()} == {"y": [2]}
        with pytest.raises(ValueError, match="read-only"):
            second.tensors["y"][0] = 99

    asyncio.run(main())


def test_an_answer_is_kept_for_its_time_and_no_longer():
    async def main():
        clock, model = Clock(), Model()
        kept = cache(MemoryStore(2**20, clock=clock), ttl_s=10)
        one = request(1)
        for moment, computed in ((0, 1), (9.9, 1), (10, 2)):
            clock.now = moment
            await kept.answer(one, "1", model.of(one))
            assert model.computed == computed

    asyncio.run(main())


def test_the_bytes_are_bounded_and_what_was_used_last_stays():
    async def main():
        store = MemoryStore(40_000)
        answer = Answer({"y": np.zeros(8_900, np.uint8)})
        for key in (b"a", b"b", b"c", b"d"):
            await store.put(key, answer, 60)
        await store.get(b"a")
        await store.put(b"e", answer, 60)
        assert [await store.get(key) is not None for key in (b"a", b"b", b"c", b"d", b"e")] == [1, 0, 1, 1, 1]
        assert store.size <= 40_000
        await store.put(b"large", Answer({"y": np.zeros(10_001, np.uint8)}), 60)
        assert await store.get(b"large") is None
        for key in (b"a", b"b", b"c", b"d", b"e"):
            await store.put(key, Answer({}), 60)
        assert store.size < 4_000

    asyncio.run(main())


def test_a_few_rows_of_a_large_batch_do_not_keep_the_batch():
    async def main():
        store = MemoryStore(2**20)
        await store.put(b"k", Answer({"y": np.zeros((1000, 3))[:1]}), 60)
        found = await store.get(b"k")
        assert found.tensors["y"].base is None

    asyncio.run(main())


def test_those_who_ask_the_same_at_once_share_one_computation():
    async def main():
        gate, events = asyncio.Event(), []
        model, kept = Model(gate.wait), cache(on_event=lambda event, name: events.append(event))
        ones = [request(1, id=str(at)) for at in range(5)]
        tasks = [asyncio.create_task(kept.answer(one, "1", model.of(one))) for one in ones]
        await model.begun.wait()
        gate.set()
        answers = await asyncio.gather(*tasks)
        assert [answer.id for answer in answers] == ["0", "1", "2", "3", "4"]
        assert (model.computed, sorted(events)) == (1, ["joined"] * 4 + ["miss"])

    asyncio.run(main())


def test_the_first_may_leave_and_the_others_get_the_answer():
    async def main():
        gate = asyncio.Event()
        model, kept = Model(gate.wait), cache()
        one = request(1)
        first, second = (asyncio.create_task(kept.answer(one, "1", model.of(one))) for _ in range(2))
        await model.begun.wait()
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert (await second).tensors["y"].tolist() == [2]
        assert (model.computed, model.cancelled) == (1, 0)

    asyncio.run(main())


def test_a_computation_that_nobody_waits_for_is_cancelled():
    async def main():
        model, kept = Model(asyncio.Event().wait), cache()
        one = request(1)
        tasks = [asyncio.create_task(kept.answer(one, "1", model.of(one))) for _ in range(2)]
        await model.begun.wait()
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert (model.cancelled, kept._flights) == (1, {})
        model.gate = None
        assert (await kept.answer(one, "1", model.of(one))).tensors["y"].tolist() == [2]

    asyncio.run(main())


def test_one_who_had_too_little_time_does_not_end_another_who_has_enough():
    async def main():
        gate = asyncio.Event()
        model, kept, one = Model(), cache(), request(1)

        async def late():
            model.begun.set()
            await gate.wait()
            raise DeadlineExceeded("the first had no time")

        first = asyncio.create_task(kept.answer(one, "1", late))
        await model.begun.wait()
        second = asyncio.create_task(kept.answer(one, "1", model.of(one)))
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(DeadlineExceeded):
            await first
        assert (await second).tensors["y"].tolist() == [2]

    asyncio.run(main())


def test_errors_are_given_to_those_who_wait_and_not_kept():
    async def main():
        gate = asyncio.Event()
        model, kept, one = Model(), cache(), request(1)

        async def fails():
            await gate.wait()
            raise ModelError("it failed")

        tasks = [asyncio.create_task(kept.answer(one, "1", fails)) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in found] == [ModelError] * 2
        assert (await kept.answer(one, "1", model.of(one))).tensors["y"].tolist() == [2]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("named", "computed"),
    [
        ({"headers": {"cache-control": "no-cache"}}, [1, 2, 2]),
        ({"headers": {"cache-control": "No-Store"}}, [1, 2, 3]),
        ({"parameters": {"sequence_id": 7}}, [1, 2, 3]),
        ({"headers": {"cache-control": "max-age=5"}}, [1, 1, 1]),
    ],
)
def test_a_request_may_ask_for_a_computation_of_its_own(named, computed):
    """Twice as it is, and then, where that is the same request, without the wish."""

    async def main():
        model, kept = Model(), cache()
        counts = []
        for one in (request(1, **named), request(1, **named), request(1, parameters=named.get("parameters", {}))):
            await kept.answer(one, "1", model.of(one))
            counts.append(model.computed)
        assert counts == computed

    asyncio.run(main())


def test_answers_that_depend_on_a_header_are_kept_apart_by_it():
    async def main():
        model, kept = Model(), cache(vary=("x-tenant",))
        for tenant in ("a", "b", "a"):
            one = request(1, headers={"x-tenant": tenant})
            await kept.answer(one, "1", model.of(one))
        assert model.computed == 2

    asyncio.run(main())


COUNTS = """
import itertools
import numpy as np
from kservekit.serving import Predictor, TensorSpec

class Counts(Predictor):
    inputs = [TensorSpec("x", "FP32", (-1,))]
    calls = itertools.count(1)

    def infer(self, tensors):
        return {"y": tensors["x"] * 0 + next(self.calls)}
"""


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.py"
    path.write_text(COUNTS)
    with LocalServer(
        f"{path}:Counts", model_name="counts", settings={"KSERVEKIT_RESPONSE_CACHE_TTL_S": "600"}
    ) as server:
        yield server


def test_every_wire_shares_the_cache_of_a_server_that_has_one(counts):
    answers = [ask(counts, wire, {"x": np.zeros(2, np.float32)}).tensors for wire in WIRES for _ in range(2)]
    assert {float(next(iter(answer.values()))[0]) for answer in answers} == {1.0}
    assert ask(counts, WIRES[0], {"x": np.ones(2, np.float32)}).tensors.popitem()[1][0] == 2
    metrics = http(counts.http_url, "/metrics").body.decode()
    assert f'kservekit_response_cache_total{{model_name="counts",result="hit"}} {2 * len(WIRES) - 1}.0' in metrics


def test_replicas_that_cannot_be_told_apart_do_not_share_a_redis(monkeypatch):
    monkeypatch.setenv("KSERVEKIT_RESPONSE_CACHE_TTL_S", "5")
    monkeypatch.setenv("KSERVEKIT_RESPONSE_CACHE_REDIS_URL", "redis://127.0.0.1:1")
    with pytest.raises(CannotStart, match="KSERVEKIT_REVISION is not"):
        response_cache("")

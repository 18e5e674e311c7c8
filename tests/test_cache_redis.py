"""The cache's Redis: shared by replicas while it is there, and no more than a short wait when it is not."""

import asyncio
import os
import shutil
import socket
import tempfile

import numpy as np
import pytest
import redis
from calls import ask, eventually

from kservekit.cache import ResponseCache
from kservekit.cache.redis import PREFIX, RedisStore
from kservekit.codec.message import Answer, Request
from kservekit.errors import CannotStart
from kservekit.local.process import GuardedProcess
from kservekit.local.server import LocalServer


@pytest.fixture
def redis_server(tmp_path):
    """A real one, in a socket file of its own; with its URL and a client to look into it."""
    binary = shutil.which("redis-server")
    if binary is None:
        if os.environ.get("KSERVEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail("no redis-server: apt-get install redis-server")
        pytest.skip("no redis-server: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder:  # a socket's path may have 107 bytes, and pytest's are longer
        path = f"{folder}/redis.sock"
        command = [binary, "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no"]
        with GuardedProcess(command, env={"PATH": os.environ["PATH"]}, log=tmp_path / "redis.log") as server:
            client = redis.Redis(unix_socket_path=path)
            assert eventually(lambda: os.path.exists(path) and client.ping()), server.log_tail()
            server.url, server.client = f"unix://{path}", client
            yield server


def answers_with(store, *, times=1):
    """What a cache over the store gives for the same request, so many times, and how often it was computed."""

    async def main():
        computed = []
        cache = ResponseCache(store, ttl_s=60, revision="r")
        request = Request({"x": np.array([1.5], np.float32)}, model="m")

        async def compute():
            computed.append(1)
            tensors = {"y": np.array([[3.0]], np.float16), "text": np.array([b"\xff\x00", b""], object)}
            return Answer(tensors, model="m", version="7", parameters={"a": 1})

        found = [await cache.answer(request, "7", compute) for _ in range(times)]
        await cache.close()
        return found, len(computed)

    return asyncio.run(main())


def test_what_one_replica_kept_another_gives(redis_server):
    (first,), computed = answers_with(RedisStore(redis_server.url))
    (second,), computed_again = answers_with(RedisStore(redis_server.url))
    assert (computed, computed_again) == (1, 0)
    for answer in (first, second):
        assert (answer.model, answer.version, answer.parameters) == ("m", "7", {"a": 1})
        assert (answer.tensors["y"].dtype, answer.tensors["y"].tolist()) == (np.float16, [[3.0]])
        assert answer.tensors["text"].tolist() == [b"\xff\x00", b""]


def test_it_is_kept_for_its_time(redis_server):
    answers_with(RedisStore(redis_server.url))
    (key,) = redis_server.client.keys()
    assert key.startswith(PREFIX)
    assert 50_000 < redis_server.client.pttl(key) <= 60_000


@pytest.mark.parametrize("rubbish", [b"", b"abc", b"\x05\x00\x00\x00{", b"\x00\x00\x00\x00[]", os.urandom(200)])
def test_rubbish_under_our_keys_is_computed_anew(redis_server, rubbish):
    answers_with(RedisStore(redis_server.url))
    (key,) = redis_server.client.keys()
    redis_server.client.set(key, rubbish)
    (answer,), computed = answers_with(RedisStore(redis_server.url))
    assert (computed, answer.version) == (1, "7")


def test_a_value_of_another_type_is_computed_anew(redis_server):
    answers_with(RedisStore(redis_server.url))
    (key,) = redis_server.client.keys()
    redis_server.client.delete(key)
    redis_server.client.lpush(key, "a list")
    assert answers_with(RedisStore(redis_server.url))[1] == 1


def test_one_that_is_gone_is_left_alone_after_a_few_calls_and_found_again():
    with socket.socket() as taken:  # accepts nobody
        taken.bind(("127.0.0.1", 0))
        store = RedisStore(f"redis://127.0.0.1:{taken.getsockname()[1]}", failures=3)
        calls = []
        execute = store._redis.execute_command
        store._redis.execute_command = lambda *command: calls.append(command[0]) or execute(*command)
        answers, computed = answers_with(store, times=10)
    assert (len(answers), computed, len(calls)) == (10, 10, 3)


def test_one_that_never_answers_costs_its_time_and_no_more():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05, failures=2)
        answers, computed = answers_with(store, times=5)
        assert (len(answers), computed) == (5, 5)
        assert store._breaker.state == "open"


def test_an_address_that_is_none_stops_the_start():
    with pytest.raises(CannotStart, match="no such address"):
        RedisStore("127.0.0.1:6379")


COUNTS = """
import itertools
from kservekit.serving import Predictor

class Counts(Predictor):
    calls = itertools.count(1)

    def infer(self, tensors):
        return {"y": tensors["x"] * 0 + next(self.calls)}
"""


def test_a_server_goes_on_when_its_redis_is_killed(redis_server, tmp_path):
    (tmp_path / "counts.py").write_text(COUNTS)
    settings = {
        "KSERVEKIT_RESPONSE_CACHE_TTL_S": "600",
        "KSERVEKIT_RESPONSE_CACHE_REDIS_URL": redis_server.url,
        "KSERVEKIT_REVISION": "a",
    }

    def count(server):
        return ask(server, "v2 gRPC", {"x": np.zeros(1, np.float32)}).tensors["y"].tolist()

    with LocalServer(f"{tmp_path / 'counts.py'}:Counts", model_name="m", settings=settings) as server:
        assert [count(server), count(server)] == [[1], [1]]
        redis_server.kill()
        assert [count(server) for _ in range(5)] == [[2], [3], [4], [5], [6]]

"""The Redis engine keeps the contract, on streams and on channels."""

from __future__ import annotations

import pytest

from headwater import RedisBroker
from headwater.testing.contract import EngineContract, MakeBroker, Restart
from servers.redis import RedisServer

pytestmark = pytest.mark.server


class TestRedis(EngineContract):
    @pytest.fixture
    def make_broker(self, redis_server: RedisServer) -> MakeBroker:
        return lambda: RedisBroker(redis_server.url)

    @pytest.fixture
    def restart(self, redis_server: RedisServer) -> Restart:
        return redis_server.restart


class TestRedisChannels(EngineContract):
    column = "redis+pubsub"

    @pytest.fixture
    def make_broker(self, redis_server: RedisServer) -> MakeBroker:
        return lambda: RedisBroker(redis_server.url, streams=False)

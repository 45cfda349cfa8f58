"""What a server says of the connections it has."""

from __future__ import annotations

import json
import urllib.request

import redis


def of_redis(url: str) -> set[str]:
    with redis.from_url(url) as client:  # type: ignore[no-untyped-call]  # the client has no types
        return {connection["id"] for connection in client.client_list()} - {str(client.client_id())}


def of_nats(monitor: str) -> set[str]:
    with urllib.request.urlopen(f"{monitor}/connz") as answer:
        return {str(connection["cid"]) for connection in json.load(answer)["connections"]}

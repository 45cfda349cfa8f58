"""The extension for Flask, in a test client and under gunicorn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask

from headwater import App, Broker, ConfigurationError, Outgoing, TestApp
from headwater.integrations.flask import Headwater

from .conftest import EachOnce
from .web import free_port, get_all, serving

# --- as an extension ----------------------------------------------------------------------------------


def shop(name: str, **config: object) -> Flask:
    app = Flask(name)
    app.config.update(config)
    return app


def test_the_config_names_the_broker_and_its_options() -> None:
    app = shop("shop", HEADWATER_URL="memory://", HEADWATER_MAX_IN_FLIGHT=3, HEADWATER_CONNECT_TIMEOUT=1.5)
    broker = Headwater(app)
    with app.app_context():
        assert broker.publish({"id": 1}, "orders").topic == "orders"
        assert broker.publish_soon({"id": 2}, "orders").result().topic == "orders"
        assert broker.publish_many([Outgoing(3, "orders")])[0].topic == "orders"
        assert broker.flush()
        assert broker.stats.delivered == 3
        assert broker.sync._deliveries.most == 3
        assert broker.sync.broker.connect_timeout == 1.5
        assert [topic.name for topic in broker.admin.topics.list()] == ["orders"]
        assert len(list(broker.stream("orders", start="earliest", limit=3))) == 3
        broker.ping()
        broker.sync.close()
    assert app.extensions["headwater"] == {"HEADWATER": broker}


def test_several_apps_have_brokers_of_their_own() -> None:
    broker = Headwater()
    apps = [shop(name, HEADWATER_URL=f"memory://{name}-flask") for name in ("one", "two")]
    for app in apps:
        broker.init_app(app)
    for count, app in enumerate(apps, 1):
        with app.app_context():
            for n in range(count):
                broker.publish(n, "orders")
            assert broker.stats.delivered == count
            broker.sync.close()
    with pytest.raises(ConfigurationError, match="2 Flask apps"):
        broker.publish(1, "orders")
    stranger = Flask("stranger")
    with stranger.app_context(), pytest.raises(ConfigurationError, match="init_app"):
        broker.publish(1, "orders")


def test_outside_of_an_app_context_the_only_app_is_meant() -> None:
    broker = Headwater(shop("shop", HEADWATER_URL="memory://"))
    assert broker.publish(1, "orders").topic == "orders"
    broker.sync.close()


def test_an_app_may_have_several_brokers() -> None:
    app = shop("shop", HEADWATER_URL="memory://orders-f", AUDIT_URL="memory://audit-f", AUDIT_WHEN_FULL="drop")
    orders, audit = Headwater(app), Headwater(app, prefix="AUDIT")
    with app.app_context():
        orders.publish(1, "t")
        assert (orders.stats.delivered, audit.stats.delivered) == (1, 0)
        assert audit.sync._deliveries.when_full == "drop"
        orders.sync.close()


def test_a_broker_can_be_given_instead_of_a_url() -> None:
    given = Broker("memory://")
    app = shop("shop")
    extension = Headwater(app, broker=given)
    with app.app_context():
        assert extension.sync.broker is given


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "set HEADWATER_URL"),
        ({"HEADWATER_URL": "memory://", "HEADWATER_MAX_INFLIGHT": 3}, "there are .*HEADWATER_MAX_IN_FLIGHT"),
    ],
)
def test_a_wrong_config_is_refused_with_a_reason(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Headwater(shop("shop", **config))


def test_the_end_of_a_request_leaves_the_connection_alone() -> None:
    app = shop("shop", HEADWATER_URL="memory://")
    broker = Headwater(app)
    engines = []

    @app.get("/")
    def index() -> str:
        broker.publish(1, "orders")
        engines.append(broker.sync.broker._outbox)
        return "ok"

    client = app.test_client()
    assert client.get("/").data == client.get("/").data == b"ok"
    assert engines[0] is engines[1]
    assert app.teardown_appcontext_funcs == []
    broker.sync.close()


def test_a_view_is_tested_together_with_the_handlers_of_its_events() -> None:
    events = App("shop", broker="nats://localhost:1")

    @events.subscriber("orders")
    async def take(order: int) -> None:
        pass

    app = shop("shop")
    broker = Headwater(app, broker=events)

    @app.get("/<int:number>")
    def order(number: int) -> str:
        return broker.publish(number, "orders").topic

    with TestApp(events) as t:
        assert app.test_client().get("/7").data == b"orders"
        t.settle()
        assert t.calls(take) == [7]


# --- under gunicorn -----------------------------------------------------------------------------------

MODULE = """
import os
from flask import Flask
from headwater import Outgoing
from headwater.integrations.flask import Headwater

app = Flask(__name__)
app.config["HEADWATER_URL"] = os.environ["URL"]
broker = Headwater(app)
topic = os.environ["TOPIC"]
if os.environ.get("EARLY"):
    broker.publish_soon(0, topic)  # in the parent, where it is preloaded


@app.get("/")
def index():
    return "ready"


@app.get("/<int:first>")
def publish(first):
    # Ten messages, each way there is.
    broker.publish_many([Outgoing(n, topic) for n in range(first, first + 3)])
    for n in range(first + 3, first + 9):
        broker.publish_soon(n, topic)
    broker.publish(first + 9, topic)
    return "ok"
"""
ROUNDS = 1000


def gunicorn(module: str, port: int, *options: str) -> list[str]:
    where = ["--bind", f"127.0.0.1:{port}", "--workers", "2", "--graceful-timeout", "10", "--no-control-socket"]
    return ["-m", "gunicorn", *where, *options, module]


@pytest.mark.server
@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("local", ["--worker-class", "sync"]),
        ("nats", ["--worker-class", "sync", "--preload"]),
        ("redis", ["--worker-class", "gthread", "--threads", "8"]),
        ("nats", ["--worker-class", "gthread", "--threads", "8", "--preload"]),
        ("redis", ["--worker-class", "sync", "--preload", "--max-requests", "100"]),
        ("redis", ["--worker-class", "gevent"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value).replace("--", ""),
)
def test_ten_thousand_messages_from_workers_of_gunicorn(
    engine: str, options: list[str], url_of: Callable[[str], str], topic: str, tmp_path: Path, each_once: EachOnce
) -> None:
    url, port = url_of(engine), free_port()
    (tmp_path / "shop.py").write_text(MODULE)
    early = "yes" if "--preload" in options else ""
    with serving(gunicorn("shop:app", port, *options), tmp_path, port, URL=url, TOPIC=topic, EARLY=early) as server:
        assert get_all(port, [f"/{n}" for n in range(1 if early else 0, 10 * ROUNDS, 10)]) == {"ok"}
    assert "not delivered" not in server.read_text()
    assert "Traceback" not in server.read_text()
    each_once(url, topic, 10 * ROUNDS + (1 if early else 0))

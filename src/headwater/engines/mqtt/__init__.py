"""The engine over MQTT servers: `mqtt://HOST` and `mqtts://HOST`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ...broker import Broker, BrokerOptions
from .engine import MqttEngine
from .options import Mqtt, MqttOptions, MqttWill, read_settings

__all__ = ["Mqtt", "MqttBroker", "MqttEngine", "MqttOptions", "MqttWill", "from_url"]


def from_url(parts: SplitResult, query: Mapping[str, str]) -> MqttEngine:
    """The engine of `mqtt://user:password@host:port?qos=1`. Raises ConfigurationError for what it lacks."""
    return MqttEngine(read_settings(parts, query))


class _Options(MqttOptions, BrokerOptions, total=False):
    will: MqttWill


class MqttBroker(Broker):
    """A broker on MQTT servers: `MqttBroker("mqtt://localhost", protocol="3.1.1")`.

    The options may stand in the URL, too, but for `will`.

    Options:
        url: `mqtt://user:password@host:port,host:port`, or `mqtts://` for TLS. The ports are 1883 and 8883.
        protocol: "5.0" or "3.1.1".
        qos: of what is published and subscribed without an `Mqtt(qos=...)` of its own; 1.
        keepalive: seconds; the server is asked three times in it, and given up once it left one unanswered; 10.
        session_expiry: seconds for which the server keeps what comes for a group's member that is away; a day.
        receive_maximum: how many messages a subscription may have unacknowledged, so also how many may be done behind
            one that is tried again; 10,000. On 3.1.1 the server alone decides.
        client_id: what client ids begin with, instead of the app's name and the host's. Where host names change with
            every start, as in containers, give one that does not, and a different one to each.
        map_separators: whether a `.` in names is a `/` on the server; True.
        max_packet_size: bytes; what is larger is refused. On 5.0 the server says how much it takes.
        ca, cert, key: files in PEM, for TLS: whom to trust, and who we are.
        insecure: believe every certificate.
        will: what the server publishes when this process vanishes.
    """

    def __init__(self, url: str = "mqtt://127.0.0.1", **options: Unpack[_Options]) -> None:
        names = {*MqttOptions.__annotations__, "will"}
        own: Any = {name: value for name, value in options.items() if name in names}
        others: Any = {name: value for name, value in options.items() if name not in names}
        super().__init__(**others)
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.use(lambda: MqttEngine(read_settings(parts, query, **own)), url)

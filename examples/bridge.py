"""From Kafka to NATS: one app with two brokers. Handlers hang on the broker they mean.

BRIDGE_FROM=kafka://localhost:9092 BRIDGE_TO=nats://localhost:4222 python bridge.py
"""

import asyncio
import os
from dataclasses import dataclass

from headwater import App, Broker

kafka = Broker(os.environ.get("BRIDGE_FROM", "memory://from"))
nats = Broker(os.environ.get("BRIDGE_TO", "memory://to"))
app = App("bridge", broker=[kafka, nats])

READINGS = 10


@dataclass
class Reading:
    sensor: int
    celsius: float


@kafka.subscriber("readings")
@nats.publisher("readings.fahrenheit", when=lambda reading: reading["sensor"] >= 0)
async def convert(reading: Reading) -> dict[str, float]:
    """Acknowledged on Kafka once NATS has accepted the result."""
    return {"sensor": reading.sensor, "fahrenheit": reading.celsius * 1.8 + 32}


arrived: set[int] = set()


@nats.subscriber("readings.fahrenheit")
async def show(sensor: int, fahrenheit: float) -> None:
    print(f"sensor {sensor}: {fahrenheit:.1f} °F")
    arrived.add(sensor)
    if len(arrived) == READINGS:
        app.stop()


@app.after_startup
async def publish_readings() -> None:
    for sensor in range(READINGS):
        await kafka.publish(Reading(sensor, 20 + sensor / 2), "readings", key=str(sensor))


if __name__ == "__main__":
    asyncio.run(app.run())

"""A FastAPI service that brings its Java server along: `javac Pricing.java`, then `uvicorn main:api --workers 3`.

There is one Java server for all workers. It is awaited for 15 s before the first request is taken, has 10 s to stop,
and is gone when this service is, even if that was killed.
"""

import os
from pathlib import Path
from urllib.request import urlopen

from fastapi import FastAPI

from headwater import Log, OnFailure, Service, Services, Stop

CLASSES = os.environ.get("PRICING_CLASSES", str(Path(__file__).parent))

pricing = Service(
    "pricing",
    ["java", "-XX:TieredStopAtLevel=1", "-cp", CLASSES, "Pricing"],
    ready=Log(r"Server - Started, port (?P<port>\d+)"),
    ready_timeout=15,
    stop=Stop("SIGTERM", grace=10),
    restart=OnFailure(max=3, within=60),
    exports=lambda service: {"PRICING_URL": f"http://127.0.0.1:{service.found['port']}"},
)
api = FastAPI(lifespan=Services(pricing))


@api.get("/price/{item}")
def price(item: str) -> float:
    with urlopen(f"{os.environ['PRICING_URL']}/price/{item}", timeout=5) as answer:
        return float(answer.read())

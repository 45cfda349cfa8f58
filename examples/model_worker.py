"""Workers that load something large, each for itself, and choose their broker while they start.

    headwater run model_worker:app --workers 2

The supervisor imports nothing of this: what `on_startup` loads is in the workers alone.
"""

import logging
import os

from headwater import App

app = App("scoring")
model: dict[str, bytes] = {}


@app.on_startup
async def load() -> None:
    """Runs inside each worker, before it connects: this may read files, or ask a configuration server."""
    model["weights"] = os.urandom(int(os.environ.get("MODEL_MEGABYTES", "64")) << 20)
    app.set_broker(os.environ.get("SCORING_BROKER", "local://./data"))


@app.subscriber("texts")
@app.publisher("scores")
async def score(text: str, logger: logging.Logger) -> dict[str, int]:
    logger.info("scored by worker %s with %d MB", app.worker_id, len(model["weights"]) >> 20)
    return {"score": len(text)}

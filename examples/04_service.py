"""A network behind HTTP: health, Prometheus metrics, a bounded queue, and a stop that loses no request.

    pip install ".[serve]"
    python examples/digits_bundle.py
    python examples/04_service.py digits.dfs --budget 0.3 --workers 2

    curl --data-binary @image.png localhost:8000/classify
    curl localhost:8000/health
    curl localhost:8000/metrics

Each worker thread has a ``Runtime`` of its own. Requests wait in a queue of a stated length; one more is answered with
503 at once, which tells a load balancer to go elsewhere: in an endless queue everybody would be late.
On SIGTERM no more connections are taken, what is under way is answered, and the program ends with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dfs_deploy import Runtime
from dfs_deploy.data import decode_image
from dfs_deploy.errors import DataError, DfsDeployError

MOST_BYTES = 10_000_000
"""Of an image in a request."""

Job = tuple[bytes, "Future[dict[str, Any]]"]


class Metrics:
    """What Prometheus reads; a registry of its own, so that two services in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("dfs_requests", "Answers by status.", ["status"], registry=self.registry)
        self.waiting = Gauge("dfs_queue_length", "Images that wait for a worker.", registry=self.registry)
        self.seconds = Histogram(
            "dfs_inference_seconds",
            "Decoding, resizing and classifying, without the wait.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
            registry=self.registry,
        )
        self.decisions = Counter("dfs_block_decisions", "Blocks by option.", ["option"], registry=self.registry)
        self.computation = Histogram(
            "dfs_computation_percentage",
            "Of every decided block in full precision, an image.",
            buckets=range(0, 101, 10),
            registry=self.registry,
        )


class Workers:
    """Threads that classify what a bounded queue holds, each with its own runtime.

    Args:
        net: given to the first; the others get clones. Closed with the workers.
        count: of threads.
        waiting: images that may wait.
        metrics: to count in.
    """

    def __init__(self, net: Runtime, count: int, waiting: int, metrics: Metrics) -> None:
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._metrics = metrics
        metrics.waiting.set_function(self._jobs.qsize)
        nets = [net, *(net.clone() for _ in range(count - 1))]
        self._threads = [threading.Thread(target=self._work, args=(each,)) for each in nets]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether every worker runs."""
        return all(thread.is_alive() for thread in self._threads)

    def submit(self, image: bytes) -> Future[dict[str, Any]]:
        """Queues an image file's bytes; raises ``queue.Full`` where too many wait."""
        future: Future[dict[str, Any]] = Future()
        self._jobs.put_nowait((image, future))
        return future

    def close(self) -> None:
        """Finishes what waits, ends the threads, and frees the runtimes."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, net: Runtime) -> None:
        with net:
            while (job := self._jobs.get()) is not None:
                image, future = job
                if not future.set_running_or_notify_cancel():
                    continue  # whoever asked went away
                try:
                    future.set_result(self._classify(net, image))
                except Exception as error:  # the request's to tell, and no reason for the worker to end
                    future.set_exception(error)

    def _classify(self, net: Runtime, image: bytes) -> dict[str, Any]:
        start = time.perf_counter()
        pixels = decode_image(image, (net.input.shape[1], net.input.shape[2]))
        result = net(pixels[None])
        self._metrics.seconds.observe(time.perf_counter() - start)
        label, names = int(result.classes[0]), net.input.class_names
        path = [net.options.names[option] for option in result.path[0]]
        for option in path:
            self._metrics.decisions.labels(option).inc()
        computation = float(result.computation_percentage[0])
        self._metrics.computation.observe(computation)
        return {
            "class": label,
            "class_name": names[label] if names else str(label),
            "path": path,
            "computation_percentage": computation,
        }


def make_app(net: Runtime, workers: int = 2, waiting: int = 64) -> FastAPI:
    """The service around a network, which it closes at its end."""
    metrics = Metrics()
    pool: list[Workers] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pool.append(Workers(net, workers, waiting, metrics))
        yield
        await asyncio.to_thread(pool[0].close)

    app = FastAPI(lifespan=lifespan)

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        if request.url.path == "/classify":
            metrics.requests.labels(str(response.status_code)).inc()
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        if not pool[0].alive:
            raise HTTPException(503, "a worker ended")
        return {"status": "ok", "bundle": net.bundle.digest, "budget": net.budget}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        image = bytearray()
        async for chunk in request.stream():
            image += chunk
            if len(image) > MOST_BYTES:
                raise HTTPException(413, f"more than {MOST_BYTES} bytes")
        try:
            return await asyncio.wrap_future(pool[0].submit(bytes(image)))
        except queue.Full as error:
            raise HTTPException(503, "too many images wait; try again", {"Retry-After": "1"}) from error
        except DataError as error:
            raise HTTPException(400, str(error)) from error

    return app


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--budget", type=float, help="computation to hold, 0 to 1, as calibrated at export")
    parser.add_argument("--workers", type=int, default=2, help="threads that classify")
    parser.add_argument("--waiting", type=int, default=64, help="images that may wait")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if options.workers < 1 or options.waiting < 1:  # a queue of length 0 would have no bound
        parser.error("--workers and --waiting must be at least 1")

    app = make_app(Runtime(options.bundle, budget=options.budget), options.workers, options.waiting)
    # uvicorn stops on the signal and raises it again when all is answered.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(app, host=options.host, port=options.port, access_log=False, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    try:
        main()
    except DfsDeployError as error:
        sys.exit(f"error: {error}")

from __future__ import annotations

import io
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dfs_deploy import Dataset, Runtime, load_dataset
from dfs_deploy.errors import DataError
from tests.examples.conftest import load_example
from tests.examples.program import EXAMPLES

for module in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(module)


def png(image: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class Service:
    """The example in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(EXAMPLES / "04_service.py"), "digits.dfs", "--port", "0", "--budget", "0.3"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, "")
        self.port = int(next(match[1] for line in lines if (match := re.search(r"http://127\.0\.0\.1:(\d+)", line))))

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 (our own service)
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def data(digits: Path) -> Dataset:
    return load_dataset(digits / "few.npz")


@pytest.fixture
def service(digits: Path) -> Iterator[Service]:
    service = Service(digits)
    with service.process:
        yield service
        service.process.kill()


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example("04_service")


def test_it_answers_as_the_runtime_does_and_stops_gracefully(service: Service, digits: Path, data: Dataset) -> None:
    with Runtime(digits / "digits.dfs", budget=0.3) as net:
        expected = net(data.images[:20])
        digest = net.bundle.digest
    assert json.loads(service.ask("/health")[1]) == {"status": "ok", "bundle": digest, "budget": 0.3}
    for row in range(20):
        status, body = service.ask("/classify", png(data.images[row]))
        answer = json.loads(body)
        assert (status, answer["class"]) == (200, expected.classes[row])
        assert answer["path"] == [("skip", "8", "16", "full")[option] for option in expected.path[row]]
    status, body = service.ask("/classify", b"no image")
    assert status == 400
    assert "no image of a known format" in body
    metrics = service.ask("/metrics")[1]
    assert 'dfs_requests_total{status="200"} 20.0' in metrics
    assert 'dfs_requests_total{status="400"} 1.0' in metrics
    assert "dfs_inference_seconds_count 20.0" in metrics
    assert "dfs_queue_length 0.0" in metrics
    counted = re.findall(r'dfs_block_decisions_total\{option="(\w+)"\} ([\d.]+)', metrics)
    assert sum(float(count) for _, count in counted) == expected.path[:20].size

    # A request that is under way when the signal comes is answered; then no more are taken.
    image = png(data.images[0])
    with socket.create_connection(("127.0.0.1", service.port)) as half:
        half.sendall(f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image[:9])
        assert service.ask("/health")[0] == 200, "the half request has been taken"
        service.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            service.process.wait(0.5)
        half.sendall(image[9:])
        assert half.recv(4096).startswith(b"HTTP/1.1 200 OK")
    assert service.process.wait(30) == 0


def test_more_than_may_wait_is_refused_and_closing_answers_the_rest(
    example: ModuleType, digits: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    decode = example.decode_image

    def slow(*words: Any) -> Any:
        begun.set()
        go_on.wait(30)
        return decode(*words)

    monkeypatch.setattr(example, "decode_image", slow)
    workers = example.Workers(Runtime(digits / "digits.dfs"), 1, 2, example.Metrics())
    image = png(data.images[0])
    futures = [workers.submit(image)]
    assert begun.wait(30)
    futures += [workers.submit(image), workers.submit(b"no image")]
    with pytest.raises(queue.Full):
        workers.submit(image)
    go_on.set()
    workers.close()
    assert futures[0].result(0) == futures[1].result(0)
    with pytest.raises(DataError):
        futures[2].result(0)
    assert not workers.alive


def test_an_image_beyond_the_limit_is_refused(service: Service, example: ModuleType) -> None:
    assert service.ask("/classify", bytes(example.MOST_BYTES + 1))[0] == 413
    assert np.isclose(float(service.ask("/metrics")[1].split('dfs_requests_total{status="413"} ')[1].split()[0]), 1)

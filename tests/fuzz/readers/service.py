"""Bodies of requests to the example service."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

from dfs_deploy import Runtime
from dfs_deploy.errors import UsageError
from tests.examples.program import EXAMPLES
from tests.fuzz.corpus import Corpus
from tests.fuzz.mutators.draw import Draw
from tests.fuzz.mutators.images import mutate_image
from tests.fuzz.reader import Fate, Reader, fingerprint, replace


class ServiceReader(Reader):
    """``POST /classify`` of ``examples/04_service.py``, called as a server would, in this process."""

    name = "service"

    def __init__(self, corpus: Corpus) -> None:
        self._files = {name: file.read_bytes() for name, file in corpus.images.items() if name != "deep.png"}
        self.seeds = tuple(self._files)
        self._bundle = corpus.bundle("floats").path
        self._service: _Service | None = None

    def place(self, seed: str, folder: Path) -> None:
        (folder / "body").write_bytes(self._files[seed])
        (folder / "request.json").write_text(json.dumps({"pieces": 1, "cut": False, "headers": []}))

    def mutate(self, draw: Draw, seed: str, folder: Path) -> Fate:
        replace(
            folder / "body",
            mutate_image(draw, self._files[seed]) if draw.chance(0.9) else draw.randbytes(draw.choice((0, 1, 100))),
        )
        if draw.chance(0.2):
            headers = [
                [draw.choice(("content-type", "content-length", "accept", "transfer-encoding", "x")), draw.text()[:300]]
            ]
            request = {"pieces": draw.choice((0, 1, 2, 100)), "cut": draw.chance(0.2), "headers": headers}
            draw.note(request)
            replace(folder / "request.json", json.dumps(request).encode())
        return "any"

    def read(self, folder: Path) -> str:
        if self._service is None:  # once in each child
            self._service = _Service(self._bundle)
        request = json.loads((folder / "request.json").read_bytes())
        status, answer = self._service.ask((folder / "body").read_bytes(), **request)
        if status in (400, 413, 499):
            raise UsageError(json.loads(answer)["detail"] if answer else "the client went away")
        if status != 200:
            raise AssertionError(f"status {status}: {answer[:200]!r}")
        return fingerprint(answer)


class _Service:
    def __init__(self, bundle: Path) -> None:
        spec = importlib.util.spec_from_file_location("service_example", EXAMPLES / "04_service.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._app = module.make_app(Runtime(bundle), 2, 8)
        self._loop = asyncio.new_event_loop()
        self._started = self._loop.create_future()
        self._lifespan = self._loop.create_task(
            self._app({"type": "lifespan", "asgi": {"version": "3.0"}}, self._begin, self._note)
        )
        self._loop.run_until_complete(self._started)

    async def _begin(self) -> dict[str, Any]:
        if not self._started.done():
            return {"type": "lifespan.startup"}
        await asyncio.Event().wait()  # the process ends without a shutdown
        raise AssertionError

    async def _note(self, message: dict[str, Any]) -> None:
        assert message["type"] == "lifespan.startup.complete", message
        self._started.set_result(None)

    def ask(self, body: bytes, pieces: int, cut: bool, headers: list[list[str]]) -> tuple[int, bytes]:
        """Status and body of the answer; 499 without an answer if the request was cut off."""
        size = max(len(body) // pieces, 1) if pieces else len(body) + 1
        parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
        messages = [
            {"type": "http.request", "body": part, "more_body": i + 1 < len(parts) or cut}
            for i, part in enumerate(parts)
        ]
        messages.append({"type": "http.disconnect"})
        answer = bytearray()
        status = 0

        async def receive() -> dict[str, Any]:
            if len(messages) > 1:
                return messages.pop(0)
            if cut:
                return messages[0]
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer.extend(message.get("body", b""))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/classify",
            "raw_path": b"/classify",
            "query_string": b"",
            "headers": [(name.encode(), value.encode("latin1", "replace")) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        try:
            self._loop.run_until_complete(self._app(scope, receive, send))
        except Exception as error:
            if cut and type(error).__name__ == "ClientDisconnect":
                return 499, b""
            raise
        return status, bytes(answer)

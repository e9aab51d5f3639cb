"""A report's page in a headless Chromium, driven through its DevTools."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_PATIENCE_S = 120.0
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def missing(what: str) -> NoReturn:
    """Skips on a machine without a browser; where CI is set, its absence is a failure."""
    message = (
        f"no {what} on the path, so the report's page is not tested; on Debian: apt install chromium chromium-driver"
    )
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def executable(*names: str) -> str:
    """The first of some programs that is there."""
    return next(filter(None, map(shutil.which, names)), None) or missing(names[0])


class Browser:
    """Chromium with one page open.

    Args:
        driver: started, with the logs of the console and of the network turned on.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, *, scheme: str = "light", width: int = 1200) -> None:
        """Opens a page and waits until its charts are drawn."""
        self.logs()  # of an earlier page
        self.media("screen", scheme)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page.as_uri())
        WebDriverWait(self.driver, _PATIENCE_S).until(lambda _: self("return document.documentElement.dataset.drawn"))

    def media(self, medium: str, scheme: str = "light") -> None:
        """Shows the page on screen or as printed, as a light or a dark system has it."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})

    def __call__(self, script: str, *arguments: Any) -> Any:
        """What a script returns, run as the body of a function in the page."""
        return self.driver.execute_script(script, *arguments)

    def logs(self) -> tuple[list[str], list[str]]:
        """Since the last call: what the console says, and the addresses that were asked for."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        # Chromium's own first page may still be loading its parts.
        own = [request for request in sent if not request["documentURL"].startswith(("chrome:", "chrome-untrusted:"))]
        return console, [request["request"]["url"] for request in own]

    def settled(self) -> None:
        """Waits until the charts show what the filters last asked for."""
        script = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));"
        self.driver.execute_async_script(script)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Starts the browser of this machine.

    Args:
        folder: empty; for the browser's profile.
    """
    program, driver = executable(*_BROWSERS), executable("chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver))
    started.set_script_timeout(_PATIENCE_S)
    try:
        yield Browser(started)
    finally:
        started.quit()

"""The real service on a port of this machine, and pages of Chromium that watch themselves."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.process import Process
from tests.service import bundles
from tests.service.linear_odes import DRIFT, LED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

TIMEOUT_MS = 30_000
"""Guess: for the slowest step of a page on a busy machine."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

Open = Callable[..., "Page"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every tiny model, and of one that is refused."""
    folder = tmp_path_factory.mktemp("models")
    for tiny in (*bundles.ALL, bundles.SHIFTED, bundles.WIDE, DRIFT, LED):
        tiny.publish(folder)
    (folder / "broken" / "1").mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def address(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a service of those models answers, in a process of its own."""
    process = Process(models, tmp_path_factory.mktemp("service") / "log")
    try:
        process.wait_until_ready()
        yield process.url
    finally:
        process.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    executable = next(filter(None, found), None)
    if executable is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: "Browser", address: str) -> Iterator[Open]:
    """Opens a path of the service, with a cache of its own or `beside` a page with that one's.

    When the test ends, none of its pages may have asked another host than the service, thrown an
    error, or logged one; `troubled` allows the line that Chromium logs for an answer that is an
    error. `prepare` is called with the page before it goes anywhere.
    """
    contexts = []
    complaints: list[str] = []

    def watch(page: "Page", troubled: bool) -> None:
        def on_console(message: "ConsoleMessage") -> None:
            expected = troubled and "Failed to load resource" in message.text
            if message.type == "error" and not expected:
                complaints.append(f"logged: {message.text}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(f"thrown: {error}"))
        page.on("request", lambda request: complaints.extend(_abroad(request.url, address)))

    def open_(
        path: str,
        *,
        troubled: bool = False,
        beside: "Page | None" = None,
        prepare: Callable[["Page"], object] | None = None,
        width: int = 1440,
        permissions: Sequence[str] = (),
    ) -> "Page":
        if beside is None:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, permissions=permissions
            )
            contexts.append(context)
        else:
            context = beside.context
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        watch(page, troubled)
        if prepare:
            prepare(page)
        page.goto(address + path)
        # What the page says before it has the list of models is not what a test asks about.
        page.wait_for_selector("#models:not([aria-busy])", state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _abroad(url: str, home: str) -> list[str]:
    return [] if urlsplit(url).netloc == urlsplit(home).netloc else [f"asked: {url}"]

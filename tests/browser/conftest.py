"""A real browser. Without one its tests are skipped, or fail if VIDFLOW_REQUIRE_BROWSER is set, as in the gate."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NoReturn

import pytest
from tests.browser.observed_page import ObservedPage

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # root cannot have one without a user namespace
    "--disable-dev-shm-usage",  # a container has 64 MB there
    "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update", "--disable-sync",
    # No other host is reachable, so anything the page loads from elsewhere would be missing.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
LIMIT_MS = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the module. Its driver occupies the main thread's event loop until the module ends."""
    if find_spec("playwright") is None:
        _end_without_browser("playwright is not installed")
    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    if executable is None:
        _end_without_browser(f"none of {', '.join(EXECUTABLES)} is on PATH")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only the extra `dev` has it

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def observed_page(browser: Any) -> Iterator[ObservedPage]:
    """A page of a new browser session, without the cookies and the cache of others."""
    with browser.new_context() as context:
        page = context.new_page()
        page.set_default_timeout(LIMIT_MS)
        yield ObservedPage(page)


def _end_without_browser(reason: str) -> NoReturn:
    if os.environ.get("VIDFLOW_REQUIRE_BROWSER"):
        pytest.fail(f"{reason}, and VIDFLOW_REQUIRE_BROWSER is set", pytrace=False)
    pytest.skip(reason)

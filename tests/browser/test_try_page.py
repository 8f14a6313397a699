"""The page to try the API, in a real browser: it works, and it asks nobody but our own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.api_server import ready_api

from vidflow.settings import ApiOptions

BROWSER = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update",
    "--disable-sync",
    # Nobody else can be reached: what the page needs of others would show as missing.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
LIMIT_MS = 20_000


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


class ObservedPage:
    """A page in the browser, all that it asked for, and all that went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.asked: list[str] = []
        self.failed: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("requestfailed", lambda request: self.failed.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)


@pytest.fixture
def observed_page() -> Iterator[ObservedPage]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER.exists():
        pytest.skip(f"there is no browser at {BROWSER}")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=str(BROWSER), args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(LIMIT_MS)
        yield ObservedPage(page)
        browser.close()


def test_the_page_at_the_root_shows_every_endpoint_without_one_request_to_outside(
    client: httpx.Client, observed_page: ObservedPage
) -> None:
    observed_page.page.goto(f"{client.base_url}/")
    observed_page.page.wait_for_selector(".opblock-summary-path")
    paths = client.get("/docs/openapi.json").json()["paths"]
    shown = {
        words.strip().replace("\u200b", "")
        for words in observed_page.page.locator(".opblock-summary-path").all_inner_texts()
    }
    assert shown == set(paths)
    assert observed_page.asked
    assert all(url.startswith((f"{client.base_url}/", "data:")) for url in observed_page.asked), observed_page.asked
    assert (observed_page.failed, observed_page.complaints) == ([], [])


def test_an_endpoint_can_be_tried_on_the_page(client: httpx.Client, observed_page: ObservedPage) -> None:
    observed_page.page.goto(f"{client.base_url}/docs")
    live = observed_page.page.locator(".opblock", has_text="/health/live")
    live.locator(".opblock-summary").click()
    live.get_by_role("button", name="Execute").click()
    answer = live.locator(".live-responses-table .response")
    answer.wait_for()
    assert answer.locator(".response-col_status").inner_text().startswith("200")
    assert '"status": "ok"' in answer.inner_text()
    assert f"{client.base_url}/health/live" in observed_page.asked
    assert (observed_page.failed, observed_page.complaints) == ([], [])

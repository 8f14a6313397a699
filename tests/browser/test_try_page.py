"""The page to try the API in a real browser: it works, and it loads nothing from other hosts."""

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
    # No other host is reachable, so anything the page loads from elsewhere would be missing.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
LIMIT_MS = 20_000


@pytest.fixture(scope="module")
def client(database_url: str) -> Iterator[httpx.Client]:
    with ready_api(ApiOptions(database_url=database_url)) as client:
        yield client


class ObservedPage:
    """A page in the browser, with its requests and its errors."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requested: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("requestfailed", lambda request: self.failed.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)


@pytest.fixture
def observed_page() -> Iterator[ObservedPage]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER.exists():
        pytest.skip(f"no browser at {BROWSER}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(BROWSER), args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(LIMIT_MS)
        yield ObservedPage(page)
        browser.close()


def test_the_page_at_the_root_shows_every_endpoint_without_requests_to_other_hosts(
    client: httpx.Client, observed_page: ObservedPage
) -> None:
    observed_page.page.goto(f"{client.base_url}/")
    observed_page.page.wait_for_selector(".opblock-summary-path")
    paths = client.get("/docs/openapi.json").json()["paths"]
    shown = {
        text.strip().replace("\u200b", "")
        for text in observed_page.page.locator(".opblock-summary-path").all_inner_texts()
    }
    assert shown == set(paths)
    assert observed_page.requested
    assert all(url.startswith((f"{client.base_url}/", "data:")) for url in observed_page.requested), (
        observed_page.requested
    )
    assert (observed_page.failed, observed_page.errors) == ([], [])


def test_an_endpoint_can_be_tried_on_the_page(client: httpx.Client, observed_page: ObservedPage) -> None:
    observed_page.page.goto(f"{client.base_url}/docs")
    live = observed_page.page.locator(".opblock", has_text="/health/live")
    live.locator(".opblock-summary").click()
    live.get_by_role("button", name="Execute").click()
    response = live.locator(".live-responses-table .response")
    response.wait_for()
    assert response.locator(".response-col_status").inner_text().startswith("200")
    assert '"status": "ok"' in response.inner_text()
    assert f"{client.base_url}/health/live" in observed_page.requested
    assert (observed_page.failed, observed_page.errors) == ([], [])

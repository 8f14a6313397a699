"""Values that are kept for a short time: how often they are read, how old they get, and how many are kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vidflow.roles.api import authentication
from vidflow.roles.api.authentication import RecentValues


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def run_at(*steps: tuple[float, Callable[[], Awaitable[object]]]) -> list[object]:
    """Run the steps, each at its time by the event loop's clock, without waiting for it."""

    async def run() -> list[object]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        results = []
        for at_s, step in steps:
            loop.time = lambda at_s=at_s: began_s + at_s  # type: ignore[method-assign]
            results.append(await step())
        return results

    return asyncio.run(run())


def test_a_value_is_read_once_for_all_requests_of_a_second(threads: ThreadPoolExecutor) -> None:
    reads: list[str] = []

    def read(key: str) -> int:
        reads.append(key)
        return len(reads)

    values = RecentValues[str, int](read, threads, 10)
    assert run_at(*[(at_s, lambda: values.get("a")) for at_s in (0.0, 0.5, 0.99)]) == [1, 1, 1]
    assert reads == ["a"]


def test_requests_that_come_together_share_one_read(threads: ThreadPoolExecutor) -> None:
    reads: list[str] = []
    may_end = threading.Event()

    def read(key: str) -> int:
        reads.append(key)
        assert may_end.wait(10)
        return 7

    values = RecentValues[str, int](read, threads, 10)

    async def get_together() -> list[int]:
        tasks = [asyncio.ensure_future(values.get("a")) for _ in range(50)]
        await asyncio.sleep(0)
        may_end.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(get_together()) == [7] * 50
    assert reads == ["a"]


def test_an_older_value_is_read_again_beside_the_request_and_a_too_old_one_before_it(
    threads: ThreadPoolExecutor,
) -> None:
    current = [1]
    read_again = threading.Event()

    def read(_key: str) -> int:
        if current[0] == 2:
            read_again.set()
        return current[0]

    values = RecentValues[str, int](read, threads, 10)

    async def get_and_let_the_reading_end() -> int:
        current[0] = 2
        value = await values.get("a")
        await asyncio.to_thread(read_again.wait, 10)
        await asyncio.gather(*values._reading.values())
        return value

    get = lambda: values.get("a")  # noqa: E731
    refreshed = run_at(
        (0.0, get), (authentication.REFRESH_S, get_and_let_the_reading_end), (authentication.REFRESH_S, get)
    )
    assert refreshed == [1, 1, 2]
    current[0] = 3
    too_old_s = 2 * authentication.MAX_AGE_S  # after the first step, which may be that much later itself
    assert run_at((too_old_s, get)) == [3]


def test_an_error_reaches_those_who_wait_and_is_not_kept(threads: ThreadPoolExecutor) -> None:
    errors: list[Exception] = [OSError("away")]

    def read(_key: str) -> int:
        if errors:
            raise errors.pop()
        return 5

    values = RecentValues[str, int](read, threads, 10)

    async def get() -> int:
        with pytest.raises(OSError, match="away"):
            await values.get("a")
        return await values.get("a")

    assert asyncio.run(get()) == 5


def test_a_request_that_is_cancelled_does_not_end_the_read_of_others(threads: ThreadPoolExecutor) -> None:
    may_end = threading.Event()
    values = RecentValues[str, bool](lambda _key: may_end.wait(10), threads, 10)

    async def cancel_one() -> bool:
        first, second = asyncio.ensure_future(values.get("a")), asyncio.ensure_future(values.get("a"))
        await asyncio.sleep(0)
        first.cancel()
        may_end.set()
        return await second

    assert asyncio.run(cancel_one()) is True


def test_the_number_of_kept_values_is_bounded(threads: ThreadPoolExecutor) -> None:
    values = RecentValues[int, int](lambda key: key, threads, 3)

    async def get_many() -> None:
        for key in range(100):
            assert await values.get(key) == key

    asyncio.run(get_many())
    assert list(values._known) == [97, 98, 99]

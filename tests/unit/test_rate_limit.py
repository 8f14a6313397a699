"""The rate of requests that a limit lets through, whatever their times are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.plugins.problem_details import ProblemDetailsException

from vidflow.domain.access import ReadScope
from vidflow.domain.rate_limit import Bucket, RateLimit
from vidflow.roles.api import quotas
from vidflow.roles.api.quotas import RequestQuota
from vidflow.settings import ApiOptions


def let_through(limit: RateLimit, times_s: list[float]) -> list[float]:
    """Return the times of the requests that the limit lets through."""
    bucket: Bucket | None = None
    passed = []
    for at_s in times_s:
        bucket = limit.fill(bucket, at_s)
        if (taken := limit.take(bucket)) is not None:
            bucket = taken
            passed.append(at_s)
    return passed


@given(
    per_s=st.floats(0.05, 1000),
    times_s=st.lists(st.floats(0, 100), max_size=300).map(sorted),
)
def test_no_stretch_of_time_has_more_requests_than_the_rate_and_one_burst(per_s: float, times_s: list[float]) -> None:
    passed = let_through(RateLimit(per_s), times_s)
    for first, begin_s in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= max(per_s, 1) + per_s * (passed[last] - begin_s) + 1e-6


@pytest.mark.parametrize("per_s", [0.1, 1, 7, 200])
def test_requests_at_the_rate_are_all_let_through(per_s: float) -> None:
    times_s = [number / per_s * 1.0001 for number in range(500)]
    assert let_through(RateLimit(per_s), times_s) == times_s


def test_the_next_request_may_come_after_the_time_that_is_told() -> None:
    limit = RateLimit(4)
    bucket = limit.fill(None, 0.0)
    while (taken := limit.take(bucket)) is not None:
        bucket = taken
    wait_s = limit.wait_s(bucket)
    assert wait_s == pytest.approx(0.25)
    assert limit.take(limit.fill(bucket, wait_s * 0.99)) is None
    assert limit.take(limit.fill(bucket, wait_s)) is not None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    limit = RateLimit(2)
    assert limit.fill(Bucket(0.5, 10.0), 3.0) == Bucket(0.5, 3.0)


def test_each_owner_has_its_own_quota_and_is_told_the_rest() -> None:
    now_s = [0.0]
    quota = RequestQuota(ApiOptions(owner_requests_per_s=2.5), lambda: now_s[0])
    anna, ben = (ReadScope(owner=name, is_for_all=False) for name in ("anna", "ben"))
    assert quota.take(anna) == {"RateLimit-Policy": '"requests";q=2;w=1', "RateLimit": '"requests";r=1;t=0'}
    assert quota.take(anna)["RateLimit"] == '"requests";r=0;t=1'
    with pytest.raises(ProblemDetailsException) as refused:
        quota.take(anna)
    assert refused.value.status_code == 429
    assert refused.value.headers == {
        "RateLimit-Policy": '"requests";q=2;w=1', "RateLimit": '"requests";r=0;t=1', "Retry-After": "1",
    }  # fmt: skip
    assert quota.take(ben)["RateLimit"] == '"requests";r=1;t=0'
    now_s[0] = 1.0
    assert quota.take(anna)["RateLimit"] == '"requests";r=1;t=0'


def test_administrators_and_requests_without_a_token_have_no_quota() -> None:
    quota = RequestQuota(ApiOptions(owner_requests_per_s=1), lambda: 0.0)
    assert [quota.take(ReadScope(owner="local", is_for_all=True)) for _ in range(100)] == [{}] * 100


def test_the_number_of_owners_that_are_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "MAX_OWNERS", 3)
    quota = RequestQuota(ApiOptions(owner_requests_per_s=1), lambda: 0.0)
    for number in range(10):
        quota.take(ReadScope(owner=str(number), is_for_all=False))
    assert list(quota._buckets) == ["7", "8", "9"]

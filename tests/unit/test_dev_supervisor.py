"""Backoff of `vidflow dev` before it restarts a role that died."""

from __future__ import annotations

from itertools import accumulate, repeat

from vidflow.commands.dev.supervisor import MAX_BACKOFF_S, MIN_BACKOFF_S, STABLE_AFTER_S, next_backoff_s


def test_the_first_restart_comes_after_a_fifth_of_a_second() -> None:
    assert next_backoff_s(None, ran_s=0.0) == MIN_BACKOFF_S == 0.2


def test_consecutive_restarts_double_the_backoff_up_to_five_seconds() -> None:
    pauses = list(accumulate(repeat(0.1, 7), next_backoff_s, initial=MIN_BACKOFF_S))
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, MAX_BACKOFF_S, MAX_BACKOFF_S, MAX_BACKOFF_S]


def test_the_backoff_is_reset_after_ten_seconds_of_running() -> None:
    assert next_backoff_s(MAX_BACKOFF_S, ran_s=STABLE_AFTER_S) == MIN_BACKOFF_S
    assert next_backoff_s(MAX_BACKOFF_S, ran_s=STABLE_AFTER_S - 0.1) == MAX_BACKOFF_S

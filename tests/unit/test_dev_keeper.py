"""How long `vidflow dev` waits before it starts again what has died."""

from __future__ import annotations

from itertools import accumulate, repeat

from vidflow.commands.dev.keeper import FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S, next_pause_s


def test_the_first_death_is_followed_by_a_start_after_a_fifth_of_a_second() -> None:
    assert next_pause_s(None, ran_s=0.0) == FIRST_PAUSE_S == 0.2


def test_deaths_in_a_row_double_the_pause_up_to_five_seconds() -> None:
    pauses = list(accumulate(repeat(0.1, 7), next_pause_s, initial=FIRST_PAUSE_S))
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_who_ran_for_ten_seconds_begins_anew() -> None:
    assert next_pause_s(LONGEST_PAUSE_S, ran_s=STEADY_S) == FIRST_PAUSE_S
    assert next_pause_s(LONGEST_PAUSE_S, ran_s=STEADY_S - 0.1) == LONGEST_PAUSE_S

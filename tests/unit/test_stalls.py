from __future__ import annotations

from vidflow.domain.stalls import StallWatch


def test_a_partition_that_lags_at_one_position_is_stalled_after_the_time() -> None:
    watch = StallWatch()
    watch.observe({3: 10}, now_s=100)
    watch.observe({3: 10}, now_s=129)
    assert watch.list_stalled(129, for_s=30) == []
    assert watch.list_stalled(130, for_s=30) == [3]


def test_a_partition_that_advances_is_not_stalled() -> None:
    watch = StallWatch()
    watch.observe({3: 10, 4: 7}, now_s=100)
    watch.observe({3: 11, 4: 7}, now_s=120)
    assert watch.list_stalled(149, for_s=30) == [4]


def test_a_partition_that_has_reached_its_end_starts_again() -> None:
    watch = StallWatch()
    watch.observe({3: 10}, now_s=100)
    watch.observe({}, now_s=110)
    watch.observe({3: 10}, now_s=120)
    assert watch.list_stalled(140, for_s=30) == []


def test_a_position_that_moves_back_starts_again() -> None:
    watch = StallWatch()
    watch.observe({3: 10}, now_s=100)
    watch.observe({3: 2}, now_s=120)
    assert watch.list_stalled(140, for_s=30) == []

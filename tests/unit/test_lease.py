from __future__ import annotations

from vidflow.domain.lease import LEASE_S, MARGIN_S, ProbeWatch, compute_trusted_until, is_runner_lease_expired

BOTH = frozenset({0, 1})


def test_a_lease_counts_from_before_the_attempt_and_is_trusted_until_half_a_second_before_its_end() -> None:
    assert compute_trusted_until(10.0) == 10.0 + LEASE_S - MARGIN_S == 11.5


def test_a_runner_silent_for_its_lease_has_expired() -> None:
    assert is_runner_lease_expired(last_seen_s=10.0, probes_received_since_s=0.0, now_s=13.0, lease_s=3.0)


def test_a_runner_heard_within_its_lease_has_not_expired() -> None:
    assert not is_runner_lease_expired(last_seen_s=10.0, probes_received_since_s=0.0, now_s=12.9, lease_s=3.0)


def test_no_runner_expires_while_the_probes_do_not_return() -> None:
    assert not is_runner_lease_expired(last_seen_s=10.0, probes_received_since_s=None, now_s=1000.0, lease_s=3.0)


def test_a_runner_gets_a_whole_lease_when_the_probes_return() -> None:
    assert not is_runner_lease_expired(last_seen_s=10.0, probes_received_since_s=99.0, now_s=101.9, lease_s=3.0)
    assert is_runner_lease_expired(last_seen_s=10.0, probes_received_since_s=99.0, now_s=102.0, lease_s=3.0)


def test_probes_are_received_once_those_of_all_partitions_returned() -> None:
    watch = ProbeWatch(BOTH).record_probe(0, sent_s=1.0, now_s=1.1)
    assert watch.probes_received_since(1.2) is None
    assert watch.record_probe(1, sent_s=1.0, now_s=1.3).probes_received_since(1.4) == 1.3


def test_probes_that_return_in_time_are_received_since_the_first() -> None:
    watch = ProbeWatch(BOTH)
    for sent_s in (1.0, 1.5, 2.0, 2.5):
        watch = watch.record_probe(0, sent_s, sent_s + 0.1).record_probe(1, sent_s, sent_s + 0.2)
    assert watch.probes_received_since(2.8) == 1.2


def test_a_single_silent_partition_interrupts_the_probes() -> None:
    watch = ProbeWatch(BOTH).record_probe(0, 1.0, 1.0).record_probe(1, 1.0, 1.0).record_probe(0, 2.0, 2.0)
    assert watch.probes_received_since(2.0) == 1.0
    assert watch.probes_received_since(2.1) is None


def test_a_probe_older_than_a_second_does_not_count() -> None:
    watch = ProbeWatch(BOTH).record_probe(0, 1.0, 2.1).record_probe(1, 1.0, 2.1)
    assert watch == ProbeWatch(BOTH)


def test_after_an_interruption_the_probes_are_received_since_its_end() -> None:
    watch = ProbeWatch(frozenset({0})).record_probe(0, 1.0, 1.0).record_probe(0, 1.5, 1.5)
    assert watch.record_probe(0, 9.0, 9.1).probes_received_since(9.2) == 9.1


def test_a_leader_that_was_frozen_does_not_expire_its_runners() -> None:
    """Its clock went on, so a backlog of old probes must not make the runners look silent."""
    watch = ProbeWatch(frozenset({0})).record_probe(0, 1.0, 1.0)
    thawed_s = 61.0
    for sent_s in (1.5, 2.0, 2.5):
        watch = watch.record_probe(0, sent_s, thawed_s)
    assert watch.probes_received_since(thawed_s) is None


def test_a_probe_of_an_unwatched_partition_has_no_effect() -> None:
    assert ProbeWatch(BOTH).record_probe(7, 1.0, 1.0) == ProbeWatch(BOTH)


def test_without_partitions_no_probes_are_received() -> None:
    assert ProbeWatch(frozenset()).probes_received_since(1.0) is None

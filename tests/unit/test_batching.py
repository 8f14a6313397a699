"""Which waiting requests of a shared model run next, and together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidflow.domain.batching import (
    ALONE_AFTER_CRASHES,
    BATCH_WAIT_S,
    FairShare,
    NextBatch,
    WaitingRequest,
    choose_batch,
)


def waiting(client: int, since_s: float = 0.0, *, frames: int = 1, start: int = 0, crashes: int = 0) -> WaitingRequest:
    return WaitingRequest(client, frames, start, since_s, crashes)


def chosen(batch: NextBatch) -> list[int]:
    return [request.client for request in batch.requests]


def test_nothing_runs_while_nothing_waits() -> None:
    assert choose_batch([], 3, 8, 0.0) == NextBatch()


def test_the_only_client_never_waits_for_others() -> None:
    assert chosen(choose_batch([waiting(1)], 1, 8, 0.0)) == [1]


def test_a_request_waits_for_the_other_clients_until_its_deadline() -> None:
    request = waiting(1, 10.0)
    assert choose_batch([request], 2, 8, 10.001) == NextBatch(wait_until_s=10.0 + BATCH_WAIT_S)
    assert chosen(choose_batch([request], 2, 8, 10.0 + BATCH_WAIT_S)) == [1]


def test_a_batch_closes_when_all_clients_wait_or_it_is_full() -> None:
    assert chosen(choose_batch([waiting(1, 0.0), waiting(2, 0.001)], 2, 8, 0.001)) == [1, 2]
    assert chosen(choose_batch([waiting(1, 0.0), waiting(2, 0.001)], 9, 2, 0.001)) == [1, 2]


def test_a_batch_of_one_never_waits() -> None:
    assert chosen(choose_batch([waiting(1)], 9, 1, 0.0)) == [1]


def test_a_request_that_does_not_fit_runs_in_the_next_batch_and_smaller_ones_pass_it() -> None:
    requests = [waiting(1, frames=3), waiting(2, frames=4, start=1), waiting(3, frames=1, start=2)]
    assert chosen(choose_batch(requests, 9, 4, 0.0)) == [1, 3]


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    assert chosen(choose_batch([waiting(1, frames=9), waiting(2, start=1)], 2, 4, 0.0)) == [1]


def test_a_request_that_was_inside_two_crashes_runs_alone_in_its_turn() -> None:
    suspect = waiting(1, crashes=ALONE_AFTER_CRASHES)
    assert chosen(choose_batch([suspect, waiting(2, start=1)], 2, 8, 0.0)) == [1]
    assert chosen(choose_batch([waiting(1, start=5, crashes=ALONE_AFTER_CRASHES), waiting(2)], 2, 8, 0.0)) == [2]
    assert chosen(choose_batch([waiting(1, crashes=ALONE_AFTER_CRASHES - 1), waiting(2)], 2, 8, 0.0)) == [1, 2]


def test_a_request_does_not_wait_for_clients_whose_requests_run() -> None:
    assert chosen(choose_batch([waiting(1)], 2, 8, 0.0, running=[waiting(2)])) == [1]
    assert chosen(choose_batch([waiting(1)], 3, 8, 0.0, running=[waiting(2)])) == []


def test_nothing_runs_beside_a_request_that_runs_alone() -> None:
    suspect = waiting(1, crashes=ALONE_AFTER_CRASHES)
    assert choose_batch([suspect], 2, 8, 9.0, running=[waiting(2)]) == NextBatch()
    assert choose_batch([waiting(2)], 2, 8, 9.0, running=[suspect]) == NextBatch()
    # Nor does a later request pass the one that waits to run alone: its turn would never come.
    assert choose_batch([suspect, waiting(3, start=1)], 3, 8, 9.0, running=[waiting(2)]) == NextBatch()


def serve_for(turns: int, frames: list[int], order: list[int], max_frames: int) -> dict[int, int]:
    """Return the frames that clients get whose next requests, of so many frames each, follow their answers at once."""
    shares, served = FairShare(), dict.fromkeys(order, 0)
    requests: list[WaitingRequest] = []
    ready = [(client, 0.0) for client in order]
    for turn in range(turns):
        for client, since_s in ready:
            shares, start = shares.admit(client, frames[client])
            requests.append(WaitingRequest(client, frames[client], start, since_s))
        batch = choose_batch(requests, len(frames), max_frames, float(turn)).requests
        assert len(batch) == 1 or 1 < sum(request.frames for request in batch) <= max_frames
        shares = shares.advance(batch)
        requests = [request for request in requests if request not in batch]
        ready = [(request.client, float(turn)) for request in batch]
        for request in batch:
            served[request.client] += request.frames
    return served


@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.data())
def test_clients_that_wait_all_the_time_get_equally_many_frames_whatever_the_size_of_their_requests(
    frames: list[int], data: st.DataObject
) -> None:
    served = serve_for(60, frames, data.draw(st.permutations(range(len(frames)))), max_frames=1).values()
    assert max(served) - min(served) <= 2 * max(frames)


@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 9))
def test_clients_share_batches_equally(clients: int, frames: int, max_frames: int) -> None:
    served = serve_for(60, [frames] * clients, list(range(clients)), max_frames).values()
    assert max(served) - min(served) <= frames


def test_a_client_that_was_idle_does_not_keep_the_others_waiting() -> None:
    shares = FairShare()
    for _ in range(1000):
        shares, start = shares.admit(1, 1)
        shares = shares.advance([waiting(1, start=start)])
    shares, late = shares.admit(2, 1)
    shares, busy = shares.admit(1, 1)
    assert busy - late <= 1


def test_a_client_that_is_gone_leaves_nothing_behind() -> None:
    shares = FairShare()
    for client in range(1000):
        shares, _ = shares.admit(client, 1)
        shares = shares.forget(client)
    assert shares.served == {}


@pytest.mark.parametrize("crashes", [0, ALONE_AFTER_CRASHES])
def test_requests_of_equal_share_run_in_the_order_of_their_arrival(crashes: int) -> None:
    requests = [waiting(client, since_s, crashes=crashes) for client, since_s in ((3, 0.3), (1, 0.1), (2, 0.2))]
    assert chosen(choose_batch(requests, 3, 1, 1.0)) == [1]

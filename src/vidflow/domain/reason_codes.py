"""Stable codes of why a scenario changed its state, for programs. The sentence beside a code is for people and may change."""

from __future__ import annotations

from enum import StrEnum


class ReasonCode(StrEnum):
    """Why a scenario changed its state. docs/reference/history.md explains each code.

    A code names the cause, the transition's states name the effect: `worker_crashed` leads to a retry while attempts are left, and
    to the shutdown after the last one. It is independent of the error of a failed scenario, whose ErrorInfo.code is an open set of
    what the client or the operator has to correct. A failure at the first attempt has the code `non_retryable_error` for all such
    errors, or `deploy_refused`. A failure after the last attempt has the code of the last loss.
    """

    CREATED = "created"
    ASSIGNED = "assigned"
    FIRST_FRAME = "first_frame"

    DEPLOY_NOT_TAKEN = "deploy_not_taken"
    RUNNER_REFUSED = "runner_refused"
    WORKER_STOPPED = "worker_stopped"
    HANDED_OVER = "handed_over"
    CUT_OFF = "cut_off"

    RUNNER_LOST = "runner_lost"
    WORKER_ERROR = "worker_error"
    WORKER_CRASHED = "worker_crashed"
    WORKER_HUNG = "worker_hung"
    WORKER_OUT_OF_MEMORY = "worker_out_of_memory"
    RESULTS_MISSING = "results_missing"
    FINISHED_INCOMPLETE = "finished_incomplete"

    NON_RETRYABLE_ERROR = "non_retryable_error"
    DEPLOY_REFUSED = "deploy_refused"

    ALL_FRAMES_STORED = "all_frames_stored"
    SHUTDOWN_REQUESTED = "shutdown_requested"

    SHUTDOWN_STARTED = "shutdown_started"
    NEVER_DEPLOYED = "never_deployed"
    END_MARKER_STORED = "end_marker_stored"
    WORKER_ENDED = "worker_ended"
    STOP_TIMED_OUT = "stop_timed_out"

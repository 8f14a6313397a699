"""Whose fault an error is, by its code or by an exception's type."""

from __future__ import annotations

import pytest

from vidflow.domain.errors import (
    InternalError,
    SetupError,
    Unavailable,
    UserError,
    VidflowError,
    build_error_from_code,
    build_internal_error,
    is_bug,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("source_missing", UserError),
        ("no_frames", UserError),
        ("model_changed", UserError),
        ("inference_failed", UserError),
        ("source_unreachable", Unavailable),
        ("source_unreadable", Unavailable),
        ("extra_missing", SetupError),
        ("internal_error", InternalError),
        ("worker_crashed", VidflowError),
        ("attempts_used_up", VidflowError),
        ("a_code_of_a_later_version", VidflowError),
    ],
)
def test_a_code_says_whose_fault_the_error_is(code: str, kind: type[VidflowError]) -> None:
    error = build_error_from_code("It failed.", code)
    assert (type(error), error.code, error.message) == (kind, code, "It failed.")


@pytest.mark.parametrize(
    "error", [TypeError(), AttributeError(), KeyError(), UnicodeError(), ZeroDivisionError(), NotImplementedError()]
)
def test_what_the_same_input_raises_again_is_a_bug(error: Exception) -> None:
    assert is_bug(error)


@pytest.mark.parametrize(
    "error", [OSError(24, "too many open files"), MemoryError(), RuntimeError("can't start new thread"), TimeoutError()]
)
def test_what_may_pass_is_no_bug(error: Exception) -> None:
    assert not is_bug(error)


def test_an_internal_error_names_the_versions_the_exception_and_what_to_report() -> None:
    error = build_internal_error(TypeError("x" * 1000), "0.1.0 on Python 3.14.0", "the traceback above")
    assert error.code == "internal_error"
    assert error.message.startswith("Internal error in vidflow 0.1.0 on Python 3.14.0 (TypeError: xxx")
    assert "This is a fault of vidflow, not of the request; report it" in error.message
    assert error.message.endswith("with this line and the traceback above.")
    assert len(error.message) < 500  # what a worker may tell its runner

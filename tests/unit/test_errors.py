"""Classification of errors by code and by exception type."""

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
        ("device_unavailable", SetupError),
        ("internal_error", InternalError),
        ("worker_crashed", VidflowError),
        ("attempts_used_up", VidflowError),
        ("a_code_of_a_later_version", VidflowError),
    ],
)
def test_an_error_code_determines_the_exception_class(code: str, kind: type[VidflowError]) -> None:
    error = build_error_from_code("It failed.", code)
    assert (type(error), error.code, error.message) == (kind, code, "It failed.")


@pytest.mark.parametrize(
    "error", [TypeError(), AttributeError(), KeyError(), UnicodeError(), ZeroDivisionError(), NotImplementedError()]
)
def test_a_programming_error_is_a_bug(error: Exception) -> None:
    assert is_bug(error)


@pytest.mark.parametrize(
    "error", [OSError(24, "too many open files"), MemoryError(), RuntimeError("can't start new thread"), TimeoutError()]
)
def test_a_lack_of_resources_is_not_a_bug(error: Exception) -> None:
    assert not is_bug(error)


def test_an_internal_error_names_the_versions_the_exception_and_what_to_report() -> None:
    error = build_internal_error(TypeError("x" * 1000), "0.1.0 on Python 3.14.0", "the traceback above")
    assert error.code == "internal_error"
    assert error.message.startswith("Internal error in vidflow 0.1.0 on Python 3.14.0 (TypeError: xxx")
    assert "This is a bug in vidflow, not a fault of the request. Report it" in error.message
    assert error.message.endswith("with this line and the traceback above.")
    assert len(error.message) < 500  # it must fit into a worker's message to its runner

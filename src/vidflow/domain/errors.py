"""The tree of vidflow's own errors: each says whose fault it was and whether a retry can mend it. No error of a library is in it.

::

    VidflowError
    ├── UserError               the request's or its data's fault: no retry mends it
    │   ├── SourceError         source_missing, source_not_video, source_no_video_stream, source_forbidden,
    │   │                       source_too_large, source_changed, no_frames
    │   ├── ModelError          model_unknown, model_spec_invalid, model_file_missing, model_changed, model_refused,
    │   │                       result_too_large
    │   ├── ParameterError      parameter_invalid
    │   ├── UnknownScenario     scenario_unknown
    │   └── ResultsRemoved      results_removed: they were kept for as long as the operator wants it
    ├── SetupError              the operator's: an extra, a setting or a step of the set-up is missing
    │   └── MissingExtra        extra_missing: names the extra to install
    ├── Unavailable             a server's: away for now, a retry mends it
    ├── InternalError           internal_error: a bug in vidflow itself
    ├── MessageError            message_invalid: a message that cannot be read, for the dead letters
    └── IllegalTransition       ours: the lifecycle has no such step
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec

STORABLE_TEXT_PATTERN: Final = r"\A[^\x00]*\Z"
"""What PostgreSQL can store as text: anything without a NUL."""


class VidflowError(Exception):
    """The root. `code` is for programs, the text (one sentence that says what to do) for people."""

    default_code: ClassVar[str] = "error"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0])


class UserError(VidflowError):
    """What was asked for, or the data that it names, is at fault: the same again will fail again."""

    default_code = "invalid"


class SourceError(UserError):
    """The source cannot be read as a video."""

    default_code = "source_invalid"


class ModelError(UserError):
    """The model is unknown, damaged or not to be trusted."""

    default_code = "model_unknown"


class ParameterError(UserError):
    """A parameter has no meaning, or no such value."""

    default_code = "parameter_invalid"


class UnknownScenario(UserError):
    """No scenario has this uuid."""

    default_code = "scenario_unknown"


class ResultsRemoved(UserError):
    """The scenario's results are not kept any more."""

    default_code = "results_removed"


class SetupError(VidflowError):
    """Something that the operator sets up is missing: an extra, a setting, the schema."""

    default_code = "setup"


class MissingExtra(SetupError):
    """A library of an extra is not installed here; another runner may have it, so a retry can mend it."""

    default_code = "extra_missing"
    retry = True


def format_install_hint(extra: str) -> str:
    """Return how to add an extra: from vidflow's own source, never by a name that another project may have on an index."""
    return f"install the extra {extra!r}: in vidflow's source folder, pip install '.[{extra}]'"


class Unavailable(VidflowError):
    """A server or a device is away for now."""

    default_code = "unavailable"
    retry = True


class InternalError(VidflowError):
    """A bug in vidflow: neither the caller nor the operator can fix it."""

    default_code = "internal_error"


class MessageError(VidflowError):
    """A message that cannot be read."""

    default_code = "message_invalid"


class IllegalTransition(VidflowError):
    """The lifecycle has no such step: a fault of ours, since the roles ask only for steps that it has."""

    default_code = "illegal_transition"


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is stored with its scenario and told over HTTP.

    `frame_number` is the frame at which the scenario could not go on, where that is known.
    """

    code: Annotated[str, msgspec.Meta(pattern=STORABLE_TEXT_PATTERN)]
    message: Annotated[str, msgspec.Meta(pattern=STORABLE_TEXT_PATTERN)]
    frame_number: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] | None = None


def build_error_from_code(message: str, code: str) -> VidflowError:
    """Return the exception for an error that another process reported by its code.

    A code that does not say whose fault it is (a crash, a later version's code) gives a plain VidflowError.
    """
    return _find_error_class(code)(message, code=code)


_UNAVAILABLE: Final = frozenset({"unavailable", "source_unreachable", "source_unreadable", "delivery_failed"})
_SETUP: Final = frozenset({"setup", "extra_missing"})
_USER_ERROR_CODES: Final = frozenset({"no_frames", "inference_failed", "message_invalid"})
"""Codes that name the caller's video or model without the prefix that the others have."""
_USER_ERROR_PREFIXES: Final = ("source_", "model_", "parameter_")


def _find_error_class(code: str) -> type[VidflowError]:
    if code in _UNAVAILABLE:
        return Unavailable
    if code in _SETUP:
        return SetupError
    if code == InternalError.default_code:
        return InternalError
    return UserError if code in _USER_ERROR_CODES or code.startswith(_USER_ERROR_PREFIXES) else VidflowError


def is_bug(error: BaseException) -> bool:
    """Return whether an unexpected exception is a programming error, which the same input raises again.

    What the system or a library refuses for lack of something (OSError, MemoryError, a RuntimeError) is not: it may pass.
    """
    return isinstance(error, _BUGS)


_BUGS: Final = (
    TypeError, AttributeError, NameError, ImportError, LookupError, ValueError, ArithmeticError, AssertionError,
    NotImplementedError, RecursionError, StopIteration,
)  # fmt: skip


def build_internal_error(error: BaseException, versions: str, traceback: str) -> InternalError:
    """Return what to tell the user about a bug. `versions`: of vidflow and Python; `traceback`: where it can be read."""
    what = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
    return InternalError(
        f"Internal error in vidflow {versions} ({what}). This is a fault of vidflow, not of the request;"
        f" report it to the vidflow developers with this line and {traceback}."
    )


_SHOWN_CHARACTERS: Final = 200
"""Of an exception's text; the traceback has all of it."""


def build_error_info(error: VidflowError, frame_number: int | None = None) -> ErrorInfo:
    """The stored form of an error."""
    return ErrorInfo(sanitize_text(error.code), sanitize_text(error.message), frame_number)


def sanitize_text(text: str) -> str:
    """Return the text without what cannot be stored or encoded: a library's words, or a worker's last ones, may hold any.

    A NUL, and half of a surrogate pair, as a file name that is no UTF-8 has it.
    """
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()

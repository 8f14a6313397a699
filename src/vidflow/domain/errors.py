"""vidflow's exception hierarchy. Each class says whose fault an error is.

::

    VidflowError
    ├── UserError               the request or its data is at fault; not retryable
    │   ├── SourceError         source_missing, source_not_video, source_no_video_stream, source_forbidden,
    │   │                       source_too_large, source_changed, source_encrypted, source_unauthorized,
    │   │                       source_denied, source_not_found, source_gone, source_expired, source_tls, source_refused,
    │   │                       no_frames
    │   ├── ModelError          model_unknown, model_spec_invalid, model_file_missing, model_changed, model_refused,
    │   │                       result_too_large
    │   ├── ParameterError      parameter_invalid
    │   ├── UnknownScenario     scenario_unknown
    │   └── ResultsRemoved      results_removed: the retention period is over
    ├── SetupError              the set-up is at fault: an extra, a setting or a step is missing
    │   ├── MissingExtra        extra_missing: names the extra to install
    │   └── DeviceUnavailable   device_unavailable: the requested GPU cannot be used; not retryable
    ├── Unavailable             a server or device is unavailable; retryable
    ├── InternalError           internal_error: a bug in vidflow itself
    ├── MessageError            message_invalid: a message that cannot be decoded; it becomes a dead letter
    └── IllegalTransition       a bug in vidflow: the lifecycle has no such step
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec

STORABLE_TEXT_PATTERN: Final = r"\A[^\x00]*\Z"
"""Text that PostgreSQL can store: anything without a NUL."""


class VidflowError(Exception):
    """Base class. `code` is for programs; the message is for people and says what to do."""

    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code

    @property
    def message(self) -> str:
        """The message for people."""
        return str(self.args[0])


class UserError(VidflowError):
    """The request, or the data that it names, is at fault. The same request fails again."""

    default_code = "invalid"


class SourceError(UserError):
    """The source cannot be read as a video."""

    default_code = "source_invalid"


class ModelError(UserError):
    """The model is unknown, damaged or not trusted."""

    default_code = "model_unknown"


class ParameterError(UserError):
    """A parameter is unknown or its value is invalid."""

    default_code = "parameter_invalid"


class UnknownScenario(UserError):
    """The scenario does not exist."""

    default_code = "scenario_unknown"


class ResultsRemoved(UserError):
    """The scenario's results were removed at the end of their retention period."""

    default_code = "results_removed"


class SetupError(VidflowError):
    """Something that the operator provides is missing: an extra, a setting, the schema."""

    default_code = "setup"


class MissingExtra(SetupError):
    """A library of an extra is not installed here. A retry may succeed on another runner that has it."""

    default_code = "extra_missing"


class DeviceUnavailable(SetupError):
    """The device that the operator requested cannot be used. It needs a change of this machine or its options, not a retry."""

    default_code = "device_unavailable"


def format_install_hint(extra: str) -> str:
    """Return a sentence without its full stop. It names the source folder: another project may own the name on a package index."""
    return f"Install the extra {extra!r} (in vidflow's source folder: pip install '.[{extra}]')"


class Unavailable(VidflowError):
    """A server or a device is temporarily unavailable."""

    default_code = "unavailable"


class InternalError(VidflowError):
    """A bug in vidflow, which neither the caller nor the operator can fix."""

    default_code = "internal_error"


class MessageError(VidflowError):
    """A message cannot be decoded."""

    default_code = "message_invalid"


class IllegalTransition(VidflowError):
    """The lifecycle has no such step. This is a bug in vidflow, since its roles request only steps that exist."""

    default_code = "illegal_transition"


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is stored with its scenario and returned over HTTP.

    `frame_number` is the frame at which the scenario failed, if known.
    """

    code: Annotated[str, msgspec.Meta(pattern=STORABLE_TEXT_PATTERN)]
    message: Annotated[str, msgspec.Meta(pattern=STORABLE_TEXT_PATTERN)]
    frame_number: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] | None = None


def build_error_from_code(message: str, code: str) -> VidflowError:
    """Return the exception for an error code that another process reported.

    A code that does not say whose fault the error is (a crash, a code of a later version) yields a plain VidflowError.
    """
    return _find_error_class(code)(message, code=code)


_UNAVAILABLE: Final = frozenset(
    {"unavailable", "source_unreachable", "source_unreadable", "source_growing", "delivery_failed"}
)
_SETUP: Final = frozenset({"setup", "extra_missing", "device_unavailable"})
_USER_ERROR_CODES: Final = frozenset({"no_frames", "inference_failed", "message_invalid"})
"""Codes of user errors that lack the usual prefixes."""
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

    OSError, MemoryError and RuntimeError are not: they report a lack of resources, which may be temporary.
    """
    return isinstance(error, _BUGS)


_BUGS: Final = (
    TypeError, AttributeError, NameError, ImportError, LookupError, ValueError, ArithmeticError, AssertionError,
    NotImplementedError, RecursionError, StopIteration,
)  # fmt: skip


def build_internal_error(error: BaseException, versions: str, traceback: str) -> InternalError:
    """Return the error shown to the user for a bug. `versions` are those of vidflow and Python; `traceback` says where it is."""
    summary = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
    return InternalError(
        f"Internal error in vidflow {versions} ({summary}). This is a bug in vidflow, not a fault of the request."
        f" Report it to the vidflow developers with this line and {traceback}."
    )


_SHOWN_CHARACTERS: Final = 200
"""Limit for the text of an exception. The traceback has all of it."""


def build_error_info(error: VidflowError, frame_number: int | None = None) -> ErrorInfo:
    """Return the error as it is stored."""
    return ErrorInfo(sanitize_text(error.code), sanitize_text(error.message), frame_number)


def sanitize_text(text: str) -> str:
    """Replace what PostgreSQL cannot store or UTF-8 cannot encode: NULs and lone surrogates.

    Messages of libraries and the last output of a worker may contain both. A lone surrogate comes from a file name that is not
    UTF-8.
    """
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()

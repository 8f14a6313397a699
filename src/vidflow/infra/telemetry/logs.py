"""Log events with fields to standard error. Secrets are masked (domain/redaction.py), and unprintable characters escaped."""

from __future__ import annotations

import datetime
import logging
import math
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import msgspec

from vidflow.domain.escaping import escape_json, escape_unprintable, escape_unprintable_lines
from vidflow.domain.redaction import redact
from vidflow.infra.telemetry.request_id import REQUEST_ID

__all__ = ["EventLog", "configure_logs", "log", "safe_line", "show_uncaught_errors"]

_FIELDS: Final = "vidflow_fields"
_CONTINUATION: Final = "    | "
"""Prefix of each line of a traceback, to distinguish it from the start of an entry."""
_RESERVED: Final = ("at", "level", "part", "event", "traceback")
_LARGEST_INTEGER: Final = 2**63


def safe_line(text: str) -> str:
    """Return the text as one line that is safe to print: secrets masked, unprintable characters escaped."""
    return escape_unprintable(redact(text))


class EventLog:
    """A named log: `log.info("scenario_assigned", scenario_uuid=…, runner=…)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"vidflow.{name}")

    def debug(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Log an event that helps only to diagnose a problem."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Log an event that is worth an operator's attention."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Log a problem that vidflow handles itself."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """Log a problem that needs an operator."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, *, cause: BaseException | None = None, **fields: Any) -> None:  # noqa: ANN401
        """Log a bug in vidflow with the traceback of `cause`, or of the exception being handled."""
        info = sys.exc_info() if cause is None else (type(cause), cause, cause.__traceback__)
        self._logger.error(event, exc_info=info, extra={_FIELDS: _add_request_id(fields)})

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: _add_request_id(fields)})


def _add_request_id(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields, with the request's id if one is being answered."""
    request_id = REQUEST_ID.get()
    return fields if request_id is None else fields | {"request_id": request_id}


def log(name: str) -> EventLog:
    """Return the log of a part of vidflow."""
    return EventLog(name)


class _TextFormatter(logging.Formatter):
    """Text for people: `12:00:01.123 info relay published rows=12`. An entry is one line, followed by its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS, {})
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).strftime("%H:%M:%S.%f")[:-3]
        words = [time, record.levelname.lower(), record.name.removeprefix("vidflow."), record.getMessage()]
        words += [f"{name}={value}" for name, value in fields.items() if value is not None]
        line = safe_line(" ".join(words))
        if not record.exc_info:
            return line
        return line + "\n" + escape_unprintable_lines(redact(self.formatException(record.exc_info)), _CONTINUATION)


class _JsonFormatter(logging.Formatter):
    """JSON for machines, one object a line: `at`, `level`, `part` and `event`, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
            "level": record.levelname.lower(),
            "part": redact(record.name.removeprefix("vidflow.")),
            "event": _text(record.getMessage()),
        }
        for name, value in getattr(record, _FIELDS, {}).items():
            entry[f"{name}_" if name in _RESERVED else _text(name)] = _encodable(value)
        if record.exc_info:
            entry["traceback"] = _text(self.formatException(record.exc_info))
        return escape_json(msgspec.json.encode(entry).decode())


def _encodable(value: object) -> object:
    """Return the value as JSON types, with its strings redacted. Other types are converted to text."""
    if value is None or isinstance(value, bool | datetime.datetime):
        return value
    if isinstance(value, int) and not hasattr(value, "value") and abs(value) < _LARGEST_INTEGER:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {_text(str(name)): _encodable(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_encodable(item) for item in value]
    return _text(str(value))


def _text(text: str) -> str:
    """Return the text with secrets masked and characters escaped that UTF-8 cannot encode."""
    return redact(text).encode("utf-8", "backslashreplace").decode()


def configure_logs(log_format: str = "text", level: int = logging.INFO) -> None:
    """Send all logs to standard error, as `text` or `json`. Call this once per process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("vidflow").setLevel(level)


def show_uncaught_errors() -> None:
    """Print uncaught exceptions with their tracebacks as Python does, but with secrets masked and unprintable characters escaped."""
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    text = "".join(traceback.format_exception(kind, error, trace)).rstrip("\n")
    sys.stderr.write(escape_unprintable_lines(redact(text)) + "\n")

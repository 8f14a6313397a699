"""Logs as events with fields, on standard error. No decision is taken here, and no secret passes: see `redacted`."""

from __future__ import annotations

import datetime
import logging
import re
import sys
from typing import Any, Final

import msgspec

_PASSWORD: Final = re.compile(r"(?<=://)([^:/@\s]*):([^@\s]*)@")
_CONNINFO_PASSWORD: Final = re.compile(r"(?i)\b(password|passfile|sslpassword)\s*=\s*('[^']*'|\S+)")
_FIELDS: Final = "vidflow_fields"


def redacted(text: str) -> str:
    """The text without the passwords of the URLs and connection strings in it."""
    return _CONNINFO_PASSWORD.sub(r"\1=***", _PASSWORD.sub(r"\1:***@", text))


class EventLog:
    """A named log: `log.info("scenario_assigned", scenario_uuid=…, runner=…)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"vidflow.{name}")

    def debug(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """What only someone who looks for a fault wants to see."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """What is worth an operator's look."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """What goes on, but not as it should."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """What does not go on."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:  # noqa: ANN401
        """An error of ours, with its traceback."""
        self._logger.error(event, exc_info=sys.exc_info(), extra={_FIELDS: fields})

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields})


def log(name: str) -> EventLog:
    """The log of a part of vidflow, named after it."""
    return EventLog(name)


class _TextFormatter(logging.Formatter):
    """`12:00:01.123 info relay published rows=12`: for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS, {})
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).strftime("%H:%M:%S.%f")[:-3]
        words = [at, record.levelname.lower(), record.name.removeprefix("vidflow."), record.getMessage()]
        words += [f"{name}={value}" for name, value in fields.items() if value is not None]
        line = redacted(" ".join(words))
        return line + "\n" + redacted(self.formatException(record.exc_info)) if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: for machines."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
            "level": record.levelname.lower(),
            "part": record.name.removeprefix("vidflow."),
            "event": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return redacted(msgspec.json.encode(entry, enc_hook=str).decode())


def configure_logs(log_format: str = "text", level: int = logging.INFO) -> None:
    """Sends all logs to standard error, as `text` or `json`. Called once, by the role's process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("vidflow").setLevel(level)

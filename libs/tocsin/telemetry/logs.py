"""Log in one way: a JSON object a line, one constant event name and typed fields.

``log.info("ballot_accepted", epoch=7, sender=agent_id)``, never an f-string: the event is what people search
and tests assert on, the fields are what they read. Nothing is sampled. The audit log is another channel.

Every line has ``timestamp`` (ISO 8601, UTC), ``level``, ``event``, ``process`` and, by ``logger``, its module.
What is bound through ``structlog.contextvars`` (trace ids) is added. Lines are ASCII: control characters,
line ends and bidirectional marks from outside are escaped, so a field cannot forge a second line.

Other libraries (nats, uvicorn, asyncio, warnings) log through the standard library: from warning up they come
out as event ``library_log`` with their words in ``message``.

Invariant: logging does not raise. A line that cannot be written is lost.

Does not protect against: a reader of the stream that stops reading. Then the write blocks, as it does with
every process that writes to a pipe; whoever starts processes must read what they say.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, Protocol, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.telemetry.fields import make_safe

Logger = FilteringBoundLogger
"""The type of a logger."""

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
"""Names of the levels, as in settings."""

_SELF_HANDLED = ("uvicorn", "uvicorn.error", "uvicorn.access")
"""Loggers of libraries that bring handlers of their own, which would write lines that are not JSON."""


class TextSink(Protocol):
    """Where lines go: any text stream."""

    def write(self, text: str, /) -> object:
        """Take one line."""

    def flush(self) -> object:
        """Hand on what was taken."""


def configure_logging(process: str, *, level: str = "info", stream: TextSink | None = None) -> None:
    """Set up logging of this process; called once in ``__main__``, and again by tests.

    Args:
        process: token of this process, in every line.
        level: least level of Tocsin's own lines, one of ``LEVELS``; other libraries' is warning, or this
            where this is higher.
        stream: where lines go; standard error as it is now by default.

    Raises:
        InvalidInputError: ``level`` is not one of ``LEVELS``.
    """
    threshold = LEVELS.get(level)
    if threshold is None:
        raise InvalidInputError(
            f"log level {level!r} is not one of {', '.join(LEVELS)}", reason="log_level_unknown"
        )
    output = _Output(sys.stderr if stream is None else stream)
    processors = _processors(process)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda name="", *_: _NamedOutput(output, name),
        # A cached logger would keep the first stream, and tests configure again. Costs 1 µs a line.
        cache_logger_on_first_use=False,
    )
    _take_over_standard_logging(_LibraryHandler(processors, output), max(threshold, logging.WARNING))


def get_logger(name: str) -> Logger:
    """Return the logger of the module ``name``. It may be made before logging is set up."""
    return cast("Logger", structlog.get_logger(name))


class _Output:
    """Writes one line in one call, whole, whichever thread it comes from."""

    def __init__(self, stream: TextSink) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        with self._lock:
            try:
                self._stream.write(f"{line}\n")
                self._stream.flush()
            except (OSError, ValueError):
                # The reader is gone or the stream is closed: there is nowhere to say so.
                return


class _NamedOutput:
    """What structlog wraps: the output, and the name of the module that writes."""

    __slots__ = ("_output", "name")

    def __init__(self, output: _Output, name: str) -> None:
        self._output = output
        self.name = name

    def msg(self, line: str) -> None:
        self._output.write(line)

    debug = info = warning = warn = error = err = critical = fatal = exception = failure = log = msg


class _LibraryHandler(logging.Handler):
    """Takes the standard library's records through the same processors."""

    def __init__(self, processors: list[Processor], output: _Output) -> None:
        super().__init__()
        self._processors = processors
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        logger = _NamedOutput(self._output, record.name)
        method = record.levelname.lower()
        try:
            line: Any = {"event": "library_log", "message": record.getMessage()}
            if record.exc_info:
                line["exc_info"] = record.exc_info
            for processor in self._processors:
                line = processor(logger, method, line)
            logger.msg(line)
        except Exception:  # noqa: BLE001 - a library's malformed record must not stop the library
            logger.msg('{"level":"warning","event":"library_log_unreadable"}')


def _take_over_standard_logging(handler: _LibraryHandler, level: int) -> None:
    root = logging.getLogger()
    for former in [one for one in root.handlers if isinstance(one, _LibraryHandler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _SELF_HANDLED:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.captureWarnings(capture=True)


def _processors(process: str) -> list[Processor]:
    def add_process(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        event_dict["process"] = process
        return event_dict

    # A list of its own for each configuration; structlog.testing.capture_logs empties it for a while.
    return [
        structlog.contextvars.merge_contextvars,
        _add_level,
        _add_name,
        add_process,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_reason,
        structlog.processors.format_exc_info,
        make_safe,
        _render,
    ]


def _add_level(_logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    event_dict["level"] = "error" if method == "exception" else method
    return event_dict


def _add_name(logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    name = getattr(logger, "name", "")
    if name:
        event_dict["logger"] = name
    return event_dict


def _add_reason(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Give an event that carries one of our errors its reason and advice as fields."""
    exc_info = event_dict.get("exc_info")
    if exc_info is True:
        exc_info = sys.exc_info()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if isinstance(error, TocsinError):
        event_dict.setdefault("error_reason", error.reason)
        advice = error.advice()
        if advice is not None:
            event_dict.setdefault("advice", advice)
    return event_dict


def _render(_logger: WrappedLogger, _method: str, event_dict: MutableMapping[str, Any]) -> str:
    first = {
        name: event_dict.pop(name, None)
        for name in ("timestamp", "level", "event", "process")
        if name in event_dict
    }
    return json.dumps({**first, **event_dict}, separators=(",", ":"), allow_nan=False)

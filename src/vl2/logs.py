"""Logging: libraries log, commands print. Names loggers and sets up a command's stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from rich.console import Console
from rich.logging import RichHandler


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; silent until an application or `log_to_stderr` adds a handler."""
    return logging.getLogger(name)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Show vl2's log on stderr, once, for commands; stdout stays free for data."""
    logger = logging.getLogger("vl2")
    logger.setLevel(level)
    if not logger.handlers:
        console = Console(stderr=True)
        if console.is_terminal:
            logger.addHandler(RichHandler(console=console, show_path=False, show_time=False))
        else:
            logger.addHandler(_Lines())


def log_json_to_stderr() -> None:
    """Show vl2's log, and uvicorn's warnings, on stderr as JSON, one object a line.

    Values that a caller gives as `extra={"fields": {...}}` become fields of their own.
    """
    for name, level in (("vl2", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [_JsonLines()]


class _JsonLines(logging.Handler):
    """A record is one JSON object."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write to the stderr of now."""
        moment = datetime.fromtimestamp(record.created, UTC)
        told = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": self.format(record),
            **getattr(record, "fields", {}),
        }
        sys.stderr.write(json.dumps(told, ensure_ascii=False) + "\n")


class _Lines(logging.Handler):
    """A record is one line where no terminal shows it, for grep and for log collectors."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write to the stderr of now."""
        sys.stderr.write(f"{record.levelname:<8} {' '.join(self.format(record).split())}\n")

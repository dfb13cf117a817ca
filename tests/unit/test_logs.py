from __future__ import annotations

import logging

import pytest

from vl2.logs import get_logger, log_to_stderr


def test_a_record_is_one_line_without_a_terminal(
    quiet: logging.Logger, capsys: pytest.CaptureFixture[str]
):
    log_to_stderr()
    log = get_logger("vl2.test")
    log.info("%s end", "word " * 100)
    log.warning("two\nlines [red]")
    log.debug("not shown")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "INFO     " + "word " * 100 + "end"
    assert second == "WARNING  two lines [red]"
    log_to_stderr()
    assert len(quiet.handlers) == 1

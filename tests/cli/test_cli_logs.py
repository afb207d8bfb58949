"""The log: one line for each event, in the form that was asked for, and no credential in any of them."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from p2pdist.cli.logs import redacted, set_up_logging
from p2pdist.config import LogConfig


@pytest.fixture
def log():
    """Sets logging up on a buffer and gives (logger, lines); what was set before comes back."""
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], root.level

    def start(**options: str):
        set_up_logging(LogConfig(**{"format": "json", **options}), stream)
        return structlog.get_logger(), lambda: stream.getvalue().splitlines()

    yield start
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_an_event_is_one_json_object_with_time_and_level(log):
    logger, lines = log()
    logger.info("ready", mirror="127.0.0.1:5050")
    (line,) = lines()
    event = json.loads(line)
    assert (event["event"], event["level"], event["mirror"]) == ("ready", "info", "127.0.0.1:5050")
    assert event["timestamp"].endswith("Z")


def test_libraries_events_come_in_the_same_form(log):
    _, lines = log()
    logging.getLogger("aiohttp.server").warning("odd %s", "request")
    assert json.loads(lines()[0])["event"] == "odd request"


def test_less_than_the_level_is_not_written(log):
    logger, lines = log(level="warning")
    logger.info("hidden")
    logging.getLogger("x").info("hidden")
    logger.warning("shown")
    assert [json.loads(line)["event"] for line in lines()] == ["shown"]


def test_an_exception_is_in_its_events_line(log):
    logger, lines = log()
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    assert len(lines()) == 1
    assert "ValueError: why" in json.loads(lines()[0])["exception"]


def test_text_for_people_has_no_escape_sequences_outside_a_terminal(log):
    logger, lines = log(format="text")
    logger.info("ready", node="a")
    assert "\x1b" not in lines()[0]
    assert "ready" in lines()[0] and "node=a" in lines()[0]


@pytest.mark.parametrize("format", ["json", "text"])
def test_no_secret_reaches_the_log_whatever_carries_it(log, format):
    logger, lines = log(format=format)
    logger.info("x", authorization="hunter2", registry_password="hunter2", url="https://bob:hunter2@r.io/v2/")
    logger.info("x", location="https://cdn.io/blob?X-Amz-Signature=hunter2", header="Bearer hunter2hunter2")
    logging.getLogger("lib").warning("GET https://bob:hunter2@r.io failed")
    try:
        raise ValueError("https://bob:hunter2@r.io")
    except ValueError:
        logger.exception("failed")
    assert "hunter2" not in "\n".join(lines())


def test_what_is_no_secret_stays():
    text = "GET https://r.io/v2/library/alpine/blobs/sha256:00ff by a@b.c: basic idea"
    assert redacted(text) == text

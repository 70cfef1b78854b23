"""What an operator sees: numbers for Prometheus, and log lines in JSON. Neither has texts."""

import json
import logging
import traceback
from datetime import UTC, datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the histograms of time."""
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Bounds of the histogram of texts per batch."""


class Metrics:
    """The numbers at `/metrics`, of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "llm2comp_requests", "Requests, by route and status.", ("route", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "llm2comp_request_seconds", "Time of a request, from its first byte to its answer.",
            ("route",), buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._texts = Counter(
            "llm2comp_texts", "Texts that were embedded.", ("model",), registry=self.registry
        )
        self._tokens = Counter(
            "llm2comp_tokens", "Tokens that were embedded.", ("model",), registry=self.registry
        )
        self._batch_texts = Histogram(
            "llm2comp_batch_texts", "Texts of a batch.", ("model",), buckets=TEXTS,
            registry=self.registry,
        )  # fmt: skip
        self._batch_seconds = Histogram(
            "llm2comp_batch_seconds", "Time of a batch.", ("model",), buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "llm2comp_waiting_texts", "Texts whose request has no answer yet.", ("model",),
            registry=self.registry,
        )  # fmt: skip

        self.searches = Gauge(
            "llm2comp_waiting_searches", "Searches of indexes that are not done.",
            registry=self.registry,
        )  # fmt: skip

    def on_batch(self, model: str, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch of a model."""
        self._texts.labels(model).inc(texts)
        self._tokens.labels(model).inc(tokens)
        self._batch_texts.labels(model).observe(texts)
        self._batch_seconds.labels(model).observe(seconds)

    def page(self) -> bytes:
        """Return the numbers in Prometheus' text format."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """Writes each record as a line of JSON.

    Of an exception it has the type and the places in the code. Its message is left out, because
    libraries quote the text at fault.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


def log_json_lines() -> None:
    """Send the log of this process to standard error as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("", "llm2comp"):
        logging.getLogger(name).handlers = [handler]
    logging.captureWarnings(True)

"""A server process: checks that it may listen where it is told to, runs uvicorn, and stops in good order.

SIGTERM and SIGINT: no new connections; /ready turns 503; streams and background responses in progress get
`drain_seconds` to end; then the rest is ended and stored, and the process leaves with status 0. A second signal kills
it at once; what it leaves unfinished the next start marks as failed.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ossia.core.errors import InvalidInputError
from ossia.server.app import create_app
from ossia.server.settings import check_exposure

if TYPE_CHECKING:
    from collections.abc import Callable

    from ossia.server.context import ServerContext

logger = logging.getLogger(__name__)

_BACKLOG = 2048


class JsonLogs(logging.Formatter):
    """A log line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        extra = getattr(record, "ossia", None)
        if isinstance(extra, dict):
            fields |= extra
        else:
            fields["message"] = record.getMessage()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def set_up_logs(level: str = "info") -> None:
    """Write this process' logs to stderr, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLogs())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn.error", "alembic", "httpx", "httpx2", "httpcore2", "mcp"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class _Server(uvicorn.Server):
    """Says that it is draining as soon as it is told to stop, and whom it listens for."""

    def __init__(self, config: uvicorn.Config, *, context: ServerContext) -> None:
        super().__init__(config)
        self._context = context

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        # Not as uvicorn does it, which would raise the signal again behind an orderly end.
        self._context.is_draining = True
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        InvalidInputError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidInputError(
            f"cannot listen on {host}:{port} ({error}); choose another --port", param="port"
        ) from error
    return listener


def serve(context: ServerContext, *, announce: Callable[[str], None] | None = None) -> None:
    """Serve until a signal says to stop.

    Args:
        announce: told the server's address once it listens.

    Raises:
        InvalidInputError: strangers could use the server, or the address cannot be had.
    """
    settings = context.settings
    required = settings.requires_key if settings.requires_key is not None else context.authenticator.has_keys()
    check_exposure(settings, has_keys=required)
    listener = bind(settings.host, settings.port)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        create_app(context),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ws="none",
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    if announce is not None:
        announce(f"http://{host}:{port}/v1")
    logger.info("serving %s on http://%s:%d", context.model.name, host, port)
    _Server(config, context=context).run(sockets=[listener])

"""Runs inside the sandbox after boot.py: an IPython kernel that keeps its output within bounds.

Only the standard library and ipykernel; the sandbox sees a copy of this file.
Usage: python -I kernel_main.py CONNECTION_FILE MAX_OUTPUT_CHARS

The bound here is a courtesy to the program, so that `print("x" * 10**9)` costs its output and not its kernel. The host
holds its own bound, since a program can undo this one.
"""

import sys
from typing import Any, cast


def main() -> None:
    """Starts the kernel and serves until it is shut down."""
    connection_file, max_chars = sys.argv[1], int(sys.argv[2])
    sys.argv[1:] = [
        f"--f={connection_file}",
        "--HistoryManager.enabled=False",
        "--InteractiveShell.colors=nocolor",
        "--InteractiveShell.cache_size=100",
        "--IPKernelApp.capture_fd_output=True",
        "--IPKernelApp.log_level=50",
    ]
    sys.path.insert(0, "")  # modules that the program saves beside it
    from ipykernel.kernelapp import IPKernelApp

    app: Any = IPKernelApp.instance()
    app.initialize()
    app.shell.history_manager.outputs = _Forgotten()
    _bound_streams(max_chars)
    _bound_results(app.session, max_chars)
    app.start()


class _Forgotten(dict[int, list[Any]]):
    """Takes the place of IPython's history of outputs, which would keep all that was printed; it holds nothing."""

    def __missing__(self, key: int) -> list[Any]:
        return []

    def setdefault(self, key: int, default: Any = None) -> Any:
        """What is appended to the list given is lost."""
        return [] if default is None else default


def _bound_streams(max_chars: int) -> None:
    """Wraps what `print` and the program's file descriptors write to.

    The text is cut here and not where it is sent: a program prints faster than its kernel sends, so what waits to be
    sent would fill the kernel's memory.
    """
    from ipykernel.iostream import OutStream

    stream_class: Any = OutStream
    write = stream_class.write
    spent: dict[str, int] = {}

    def write_bounded(stream: Any, string: object) -> int | None:
        call = str(stream.parent_header.get("msg_id", ""))
        if not isinstance(string, str):
            return write(stream, string)  # raises the error that the program expects
        if call not in spent:
            spent.clear()
        left = max_chars - spent.get(call, 0)
        spent[call] = spent.get(call, 0) + len(string)
        if left > 0:
            write(stream, string[:left])
        return len(string)

    stream_class.write = write_bounded


def _bound_results(session: Any, max_chars: int) -> None:
    """Wraps the session's `send`, through which values and errors go."""
    send = session.send

    def send_bounded(stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **options: Any) -> Any:
        if isinstance(msg_or_type, dict):
            message = cast("dict[str, Any]", msg_or_type)
            kind, body = message["header"]["msg_type"], message["content"]
        else:
            kind, body = msg_or_type, content
        if isinstance(body, dict):
            _cut(kind, cast("dict[str, Any]", body), max_chars)
        return send(stream, msg_or_type, content, *args, **options)

    session.send = send_bounded


def _cut(kind: str, body: dict[str, Any], max_chars: int) -> None:
    """Shortens the texts of a message in place."""
    if kind == "error":
        body["evalue"] = str(body.get("evalue", ""))[:max_chars]
        body["traceback"] = [str(part)[:max_chars] for part in body.get("traceback", [])][-50:]
    elif kind in ("execute_result", "display_data"):
        data: dict[str, Any] = body.get("data", {})
        for key, value in data.items():
            if isinstance(value, str) and not key.startswith("image/"):
                data[key] = value[:max_chars]


main()

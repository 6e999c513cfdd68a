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
    _bound_output(app.session, max_chars)
    app.start()


def _bound_output(session: Any, max_chars: int) -> None:
    """Wraps the session's `send`, through which all output goes."""
    send = session.send
    spent: dict[str, int] = {}

    def send_bounded(stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **options: Any) -> Any:
        if isinstance(msg_or_type, dict):
            message = cast("dict[str, Any]", msg_or_type)
            kind, body, parent = message["header"]["msg_type"], message["content"], message.get("parent_header")
        else:
            kind, body, parent = msg_or_type, content, args[0] if args else options.get("parent")
        if kind in ("stream", "execute_result", "display_data", "error") and isinstance(body, dict):
            call = _request_of(parent)
            if call not in spent:
                spent.clear()
                spent[call] = 0
            spent[call] += _cut(kind, cast("dict[str, Any]", body), max_chars, max_chars - spent[call])
            if kind == "stream" and not body["text"]:
                return None
        return send(stream, msg_or_type, content, *args, **options)

    session.send = send_bounded


def _request_of(parent: Any) -> str:
    """The id of the request that a message answers; `parent` is that request or its header."""
    if not isinstance(parent, dict):
        return ""
    message = cast("dict[str, Any]", parent)
    return str(message.get("header", message).get("msg_id", ""))


def _cut(kind: str, body: dict[str, Any], max_chars: int, left: int) -> int:
    """Shortens the texts of a message in place; gives how much of the stream's allowance it used."""
    if kind == "stream":
        text = str(body.get("text", ""))
        body["text"] = text[: max(left, 0)]
        return len(text)
    if kind == "error":
        body["evalue"] = str(body.get("evalue", ""))[:max_chars]
        body["traceback"] = [str(part)[:max_chars] for part in body.get("traceback", [])][-50:]
        return 0
    data: dict[str, Any] = body.get("data", {})
    for key, value in data.items():
        if isinstance(value, str) and not key.startswith("image/"):
            data[key] = value[:max_chars]
    return 0


main()

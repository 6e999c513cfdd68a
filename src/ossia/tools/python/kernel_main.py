"""Runs inside the sandbox after boot.py: an IPython kernel that keeps its output within bounds.

Only the standard library and ipykernel; the sandbox sees a copy of this file.
Usage: python -I kernel_main.py CONNECTION_FILE MAX_OUTPUT_CHARS

The bound here is a courtesy to the program, so that `print("x" * 10**9)` costs its output and not its kernel. The host
holds its own bound, since a program can undo this one.
"""

import sys


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

    app = IPKernelApp.instance()
    app.initialize()
    _bound_output(app.session, max_chars)
    app.start()


def _bound_output(session, max_chars: int) -> None:
    send = session.send
    spent: dict[str, int] = {}

    def send_bounded(stream, msg_or_type, content=None, *args, **kwargs):
        message = msg_or_type if isinstance(msg_or_type, dict) else None
        kind = message["header"]["msg_type"] if message else msg_or_type
        body = message["content"] if message else content
        parent = message.get("parent_header") if message else (args[0] if args else kwargs.get("parent"))
        if kind in ("stream", "execute_result", "display_data", "error") and isinstance(body, dict):
            call = ((parent or {}).get("header") or parent or {}).get("msg_id", "")
            if call not in spent:
                spent.clear()
                spent[call] = 0
            if not _cut(kind, body, spent, call):
                return None
        return send(stream, msg_or_type, content, *args, **kwargs)

    def _cut(kind, body, spent, call) -> bool:
        """Shortens texts to what is left of the bound; False drops the message."""
        if kind == "stream":
            left = max_chars - spent[call]
            if left <= 0:
                return False
            text = body.get("text", "")
            spent[call] += len(text)
            body["text"] = text[:left]
            return True
        data = body.get("data", {}) if kind != "error" else {}
        for key in [key for key, value in data.items() if isinstance(value, str) and not key.startswith("image/")]:
            data[key] = data[key][:max_chars]
        if kind == "error":
            body["evalue"] = str(body.get("evalue", ""))[:max_chars]
            body["traceback"] = [str(part)[:max_chars] for part in body.get("traceback", [])][-50:]
        return True

    session.send = send_bounded


main()

"""The extraction worker: reads pages on stdin, writes their texts to stdout, within limits. Run with `python -m`."""

from __future__ import annotations

import json
import resource
import sys
import warnings

from ossia.core.errors import OssiaError
from ossia.tools.browser.extract import extract
from ossia.tools.browser.fetch import RawPage

MAX_MEMORY_BYTES = 1536 << 20


def serve() -> None:
    """Answers until stdin ends. A request is a line of JSON and the page's bytes; an answer a length and JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not break the protocol
    while line := stdin.readline():
        head = json.loads(line)
        page = RawPage(
            url=head["url"],
            data=stdin.read(head["size"]),
            content_type=head["content_type"],
            charset=head["charset"],
        )
        try:
            found = extract(page, is_source=head["is_source"])
            answer: dict[str, object] = {"title": found.title, "text": found.text, "links": found.links}
        except OssiaError as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": "The page cannot be read: it takes too much memory."}
        except RecursionError:
            answer = {"error": "The page cannot be read: it is nested too deeply."}
        data = json.dumps(answer).encode()
        stdout.write(len(data).to_bytes(4, "big") + data)
        stdout.flush()


if __name__ == "__main__":
    serve()

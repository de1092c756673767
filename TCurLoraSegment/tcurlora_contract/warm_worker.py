"""The protocol of `tcurlora serve`: requests as JSON lines on stdin, their events as JSON lines on stdout.

The worker says `ready` once. Every event of a request carries its id, and the last one is `end` with the exit code that
the command line would have had. What a command would have printed is a `result` event with `content`. Requests are done
one at a time, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

READY = "ready"
"""Event: the worker takes requests; has `version`."""
END = "end"
"""Event: a request is done; has `id` and `exit_code`."""
COMMANDS = ("segment", "check", "models", "adapters", "doctor")
"""What a worker does; the rest has a process of its own."""
CANCEL_LINE = "cancel"
"""What a process that was started with --attached reads on stdin to end."""


def request_line(request_id: str, arguments: Sequence[str]) -> str:
    """Write a request.

    Args:
        request_id: told with every event; not in use by another request that has not ended.
        arguments: a command and its options, as on the command line; paths are best absolute.

    >>> request_line("7", ["segment", "--model", "a"])
    '{"id": "7", "command": "segment", "arguments": ["--model", "a"]}'
    """
    return json.dumps({"id": request_id, "command": arguments[0], "arguments": list(arguments[1:])})


def cancel_line(request_id: str) -> str:
    """Write that a request is to end.

    >>> cancel_line("7")
    '{"cancel": "7"}'
    """
    return json.dumps({"cancel": request_id})

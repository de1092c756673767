"""Events: JSON objects, one a line, by which a run tells how far it is.

Each has `event`, its kind, and the fields of that kind; further fields may come and are to be passed over. In the file
of a job each has `time` too, and in a warm worker the `id` of its request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STAGE = "stage"
PROGRESS = "progress"
METRIC = "metric"
WARNING = "warning"
ERROR = "error"
RESULT = "result"

FIELDS: Mapping[str, tuple[str, ...]] = {
    STAGE: ("name", "title"),
    PROGRESS: ("step", "total"),
    METRIC: ("name", "value"),
    WARNING: ("code", "message"),
    ERROR: ("code", "message", "remedy"),
    RESULT: (),
}
"""What an event of each kind always has.

`progress` may have eta_s (seconds), loss, part (of the next step, 0 to 1) and training (0 the final one, else the
fold); `metric` step, where it is a point of a curve, training and fold; `warning` severity and case.
"""


def problem_of(event: Any) -> str:
    """Say why something is not an event; an empty text where it is one.

    >>> problem_of({"event": "progress", "step": 1, "total": 2, "eta_s": 3.0})
    ''
    >>> problem_of({"event": "progress", "step": 1})
    'progress lacks total'
    """
    if not isinstance(event, Mapping) or not isinstance(event.get("event"), str):
        return "no kind"
    kind = str(event["event"])
    if kind not in FIELDS:
        return f"unknown kind '{kind}'"
    missing = [name for name in FIELDS[kind] if name not in event]
    return f"{kind} lacks {', '.join(missing)}" if missing else ""

"""Names in the folder of a job: what the engine writes, and what the program that starts it does."""

from __future__ import annotations

# Written by the engine.
REQUEST = "job.json"
"""What is asked for, and what it depends on; makes a folder that of a job."""
EVENTS = "events.jsonl"
"""Every event with its time, one JSON object a line."""
CHECKPOINT = "checkpoint.safetensors"
DONE = "done"
"""Folder of intermediate results, which a resumed job does not compute again."""
CACHE = "cache"
"""Folder of prepared cases."""
RESULT = "result.json"
"""Written last of all: a job that has it is done."""
LOCK = ".lock"
"""Held while a run is at work in the folder."""

# Written by the program that starts the job.
INPUTS = "inputs"
LOG = "worker.log"
"""What the process says besides its events."""
STATE = "worker.pid"
"""Number and start of the process; how it ended where that was by the user's wish."""
SCENE = "scene.json"
"""What the scene must know of the job after a restart."""
STARTERS_FILES = frozenset({INPUTS, LOG, STATE, SCENE})
"""The engine leaves these alone."""

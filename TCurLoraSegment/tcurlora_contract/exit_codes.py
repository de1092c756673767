"""How a process of the engine says in its exit code what became of it."""

from __future__ import annotations

DONE = 0
FAILED = 1
"""Anything that is not listed here, such as a disk that cannot be written."""
BAD_INPUT = 2
"""Something that the user gave cannot be used; nothing has been written."""
OUT_OF_MEMORY = 3
CANCELLED = 4

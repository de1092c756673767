"""Errors that are shown to the user."""

from __future__ import annotations

import re


class UserError(Exception):
    """Something that the user can put right.

    Args:
        message: one sentence that names the node or file and says what is wrong with it.
        remedy: one sentence that says what to do.
        code: the engine's short name for what is wrong; empty where it did not come from there.
    """

    def __init__(self, message: str, remedy: str = "", code: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.code = code
        self.message = message
        self.remedy = remedy


def without_options(text: str) -> str:
    """Leave out the parentheses in which the engine names options of its command line; the panel has none."""
    return re.sub(r" \((?:[^()]* )?--[a-z][^()]*\)", "", text)

"""Doubts about a file that is read in spite of them: what is odd, how it was read, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import SimpleITK as sitk


@dataclass(frozen=True)
class ImageWarning:
    """Something about a file that its reader had to decide.

    Attributes:
        code: a short, stable name, such as `forms_disagree`.
        message: names the file, what is odd about it, and the reading that was taken.
        remedy: what to do if that reading is wrong.
    """

    code: str
    message: str
    remedy: str


OnWarning = Callable[[ImageWarning], None]
"""Is told of each doubt about a file."""


def unheard(_: ImageWarning) -> None:
    """Pass over a warning, where its file has been read before and the user has been told."""


# What is looked at, and told in our own words, before ITK reads a file.
_TOLD_ELSEWHERE = ("unexpected scales in sform", "non-orthogonal sform", "Analyze file")


class _Logger(sitk.LoggerBase):  # type: ignore[misc]
    """Keeps what ITK has to say."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def DisplayText(self, text: str) -> None:  # noqa: N802 - SimpleITK's names
        self.texts.append(text)

    def DisplayErrorText(self, text: str) -> None:  # noqa: N802
        self.texts.append(text)

    def DisplayWarningText(self, text: str) -> None:  # noqa: N802
        self.texts.append(text)

    def DisplayGenericOutputText(self, text: str) -> None:  # noqa: N802
        self.texts.append(text)

    def DisplayDebugText(self, text: str) -> None:  # noqa: N802
        pass


@contextmanager
def itk_warnings(name: str, on_warning: OnWarning) -> Iterator[None]:
    """Tell of what ITK warns of meanwhile, once each, without the places in its source.

    Args:
        name: of what is read.
        on_warning: is told at the end, when the reading has succeeded.
    """
    logger = _Logger()
    before = logger.SetAsGlobalITKLogger()
    displayed = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(True)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(displayed)
        before.SetAsGlobalITKLogger()
    for text in dict.fromkeys(_plain(text) for text in logger.texts):
        if text and not any(known in text for known in _TOLD_ELSEWHERE):
            message = f"The library that reads images (ITK) warns of {name}: {text}"
            on_warning(ImageWarning("itk", message, "Look at the scan in 3D Slicer before you use it."))


@contextmanager
def itk_quiet() -> Iterator[None]:
    """Keep ITK's warnings from the console, where nobody would know what they are about."""
    displayed = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(displayed)


def _plain(text: str) -> str:
    """Leave out what ITK puts before its words: kind, file and line of its source, class and address."""
    words = re.sub(r"(?m)^(WARNING|ERROR)?:? ?In .*, line \d+\s*$", "", text)
    words = re.sub(r"\b\w+ \((0x)?[0-9a-fA-F]+\): ", "", words)
    return " ".join(words.split())

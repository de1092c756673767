"""When two names of structures mean the same."""

from __future__ import annotations

import re
import unicodedata

BACKGROUND = "background"


def normalized(name: str) -> str:
    """Return a name in lower case, its words separated by one space; one without letters and digits as it is.

    >>> normalized("Anterior_Hippocampus"), normalized(" ? ")
    ('anterior hippocampus', '?')
    """
    # NFKC, because one program writes an accented letter as one character and another as two.
    text = unicodedata.normalize("NFKC", name).replace("_", " ").casefold()
    return " ".join(re.findall(r"\w+", text)) or name.strip()

"""Whose scans they are, as far as the names of the cases tell."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

_SIDES = "l r left right lt rt lh rh li re links rechts gauche droite izquierda derecha sinistra destra 左 右"
_VISITS = (
    "ses session visit vis v tp timepoint t baseline base bl followup fu pre post preop postop intraop "
    "week wk month mo day year yr run besuch kontrolle mr"
)
_SEQUENCES = "t1w t1 t1c t1ce t1gd t1post t2w t2 t2star flair t2flair pd pdw dwi adc swi ct cta mri pet"
SIDES = frozenset(_SIDES.split())
VISITS = frozenset(_VISITS.split())
SEQUENCES = frozenset(_SEQUENCES.split())
WEAK = frozenset(["scan", "rep", "repeat", "acq", "exam", "image", "img", "m", "d", "y", "w", "part", "no", "nr"])
"""Words that with a number may count the scans of a person, or the people themselves."""
NEED_A_NUMBER = frozenset(["v", "t", "mr"])
MOST_PER_PERSON = 4
"""Where more names than this differ in nothing but a number, they are more likely people than visits."""

_DATE = re.compile(r"(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])")


def derive_subjects(names: Sequence[str]) -> dict[str, str]:
    """Guess which cases are of one person, from names that differ only by side, visit, session or running number.

    `anna_left` and `anna_right` are of `anna`, `sub-01_ses-1` and `sub-01_ses-2` of `sub-01`, `case_001_T1` and
    `case_001_T2` of `case_001`. A number alone counts as that of a visit only where what stands before it has a
    number of its own and is met with several times, as in `p07_1`, `p07_2`, `p08_1`: `hippocampus_001` and
    `hippocampus_002` are two people.

    Args:
        names: of the cases, without the endings of files.

    Returns:
        The subject of each name: what is left of it without side, visit and session, if anything is.
    """
    subject = {name: _without_marks(name) or name for name in names}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(subject.values()):
        groups[_without_number(name)].append(name)
    groups.pop("", None)
    if len(groups) < 2 or any(len(members) > MOST_PER_PERSON for members in groups.values()):
        return subject
    person = {name: rest for rest, members in groups.items() if len(members) > 1 for name in members}
    return {name: person.get(found, found) for name, found in subject.items()}


def _parts(name: str) -> list[tuple[str, str]]:
    """Split a name into words and the marks before them; dates stay whole, and camel case is split at sides."""
    text = re.sub(r"(?<=[a-z0-9])(Left|Right)(?![a-z])", r"_\1", unicodedata.normalize("NFC", name))
    text = re.sub(r"(?<=\d)([LR])(?![A-Za-z0-9])", r"_\1", text)
    text = _DATE.sub(lambda found: re.sub(r"[-_.]", "", found.group()), text)
    pieces = re.findall(r"([\W_]*)([^\W_]+)", text)
    return [(mark, word) for mark, word in pieces]


def _joined(parts: Sequence[tuple[str, str]]) -> str:
    text = "".join(mark + word for mark, word in parts)
    return re.sub(r"^[\W_]+", "", text)


def _without_marks(name: str) -> str:
    """Leave out sides, visits and sequences; empty where nothing or no name is left."""
    bids = re.match(r"(sub-[A-Za-z0-9]+)(?=_|$)", name)
    if bids:
        return bids.group(1)
    parts = _parts(name)
    kept: list[tuple[str, str]] = []
    index = 0
    while index < len(parts):
        mark, word = parts[index]
        following = parts[index + 1][1] if index + 1 < len(parts) else ""
        bare, number = _word_and_number(word)
        is_last = index > 0
        if word.casefold() in SIDES or (is_last and word.casefold() in SEQUENCES):
            index += 1
        elif is_last and bare in VISITS and (number or bare not in NEED_A_NUMBER):
            index += 2 if not number and re.fullmatch(r"\d{1,3}", following) else 1
        elif is_last and bare in VISITS and re.fullmatch(r"\d{1,2}", following):
            index += 2
        else:
            kept.append((mark, word))
            index += 1
    return _joined(kept) if len(kept) < len(parts) else name


def _without_number(name: str) -> str:
    """Leave out a last number, letter or date where a number before it tells people apart; else empty."""
    parts = _parts(name)
    if not parts:
        return ""
    head, last = parts[:-1], parts[-1][1]
    bare, number = _word_and_number(last)
    letter = re.fullmatch(r"(.*\d)([a-e])", last)
    if letter:
        return _joined([*head, (parts[-1][0], letter.group(1))])
    counted = _DATE.fullmatch(last) or re.fullmatch(r"\d{1,2}", last) or (bare in WEAK and number)
    if len(head) > 1 and head[-1][1].casefold() in WEAK and re.fullmatch(r"\d{1,2}", last):
        head = head[:-1]
    return _joined(head) if counted and head and _tells_people_apart(head[-1][1]) else ""


def _tells_people_apart(word: str) -> bool:
    return bool(re.search(r"\d", word)) and not re.fullmatch(r"(19|20)\d\d", word)


def _word_and_number(word: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\D+)(\d{0,3})", word.casefold())
    return (found.group(1), found.group(2)) if found else ("", "")

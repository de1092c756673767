"""Structures (named labels) and how a site's structures are served by a base model's output channels.

Matching goes by name, never by number: the number of a label is an accident of the program that wrote it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tcurlora.errors import InputError

BACKGROUND = "background"
NEW = "new"
SIDES = {"left", "right", "l", "r", "lh", "rh"}


@dataclass(frozen=True)
class Structure:
    """A named label: its voxel value, and, where known, its RGB color (0 to 1) and Slicer terminology entry."""

    name: str
    value: int
    color: tuple[float, float, float] | None = None
    terminology: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Structure:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError, IndexError: when it is anything else.
        """
        color = entry.get("color")
        if not 0 < float(entry["value"]) < 2**31:
            raise ValueError(f"{entry['value']} is no label number")
        return cls(
            name=str(entry["name"]),
            value=int(entry["value"]),
            color=None if color is None else (float(color[0]), float(color[1]), float(color[2])),
            terminology=entry.get("terminology"),
        )


@dataclass(frozen=True)
class Channel:
    """One output channel of an adapted network: the structure it votes for, and the base channel it starts from.

    Several channels may vote for one structure; its probability is the sum of theirs. `source` is None for a
    structure that the base never saw.
    """

    name: str
    source: int | None


def normalized(name: str) -> str:
    """Lower case, words separated by one space: `Anterior_Hippocampus` and `anterior hippocampus` are the same."""
    # NFKC, because one program writes an accented letter as one character and another as two.
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", name).replace("_", " ").casefold()))


def is_background(name: str) -> bool:
    """Whether a label of that name says that there is nothing, as the segment that Slicer's Grow from seeds needs."""
    return normalized(name) == BACKGROUND


def match_structures(
    site: Sequence[str], base: Sequence[str], explicit: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """Say for each structure of the site which structures of the base it consists of; none means it is new.

    The explicit mapping decides first, then an equal name, then equal words, then containment of words: the site's
    `hippocampus` is the base's `anterior hippocampus` and `posterior hippocampus` together, and a site's `anterior
    hippocampus` starts from a base's `hippocampus`. Where the base names no sides, those of the site are passed over:
    `left hippocampus` is matched as `hippocampus` is.

    Args:
        site: names of the site's structures, without the background.
        base: names of the base's structures, without the background.
        explicit: site name to base names; `["new"]` says that the base never saw it.

    Raises:
        InputError: when the explicit mapping names a structure that does not exist on its side.
    """
    base_by_name = {normalized(name): name for name in base}
    site_by_name = {normalized(name): name for name in site}
    matched: dict[str, list[str]] = {}
    for site_name, base_names in (explicit or {}).items():
        if normalized(site_name) not in site_by_name:
            raise InputError(
                f"The mapping names the structure '{site_name}', but the cases have only {_listed(site)}.",
                "Correct the name of your structure (on the left of '=' in --map).",
                "unknown_structure",
            )
        if [normalized(name) for name in base_names] == [NEW]:
            matched[site_by_name[normalized(site_name)]] = []
            continue
        unknown = [name for name in base_names if normalized(name) not in base_by_name]
        if unknown:
            raise InputError(
                f"The mapping names the base structure '{unknown[0]}', but the base model has only {_listed(base)}.",
                "Correct its names (on the right of '=' in --map), or write 'new' for a structure that it never saw.",
                "unknown_structure",
            )
        matched[site_by_name[normalized(site_name)]] = [base_by_name[normalized(name)] for name in base_names]
    for name in site:
        if name in matched:
            continue
        words = set(normalized(name).split())
        found = [base_by_name[normalized(name)]] if normalized(name) in base_by_name else _by_words(words, base)
        if not found and not any(SIDES & set(normalized(b).split()) for b in base):
            found = _by_words(words - SIDES, base)
        matched[name] = found
    return {name: matched[name] for name in site}


def _by_words(words: set[str], base: Sequence[str]) -> list[str]:
    words_of = {name: set(normalized(name).split()) for name in base}
    same = [name for name in base if words and words_of[name] == words]
    parts = [name for name in base if words and words < words_of[name]]
    wholes = [name for name in base if words_of[name] and words_of[name] < words]
    return same or parts or (wholes if len(wholes) == 1 else [])


def plan_channels(matched: Mapping[str, Sequence[str]], base_channels: Sequence[str]) -> list[Channel]:
    """Lay out the output channels of the adapted network.

    Base channels keep their order and their weights. A base structure that the site does not label counts as
    background there; one that several structures of the site share is repeated, once for each.

    Args:
        matched: the result of `match_structures`.
        base_channels: name of each output channel of the base network, the background included.
    """
    channels: list[Channel] = []
    for index, base_name in enumerate(base_channels):
        users = [site for site, sources in matched.items() if base_name in sources]
        channels += [Channel(name, index) for name in users or [BACKGROUND]]
    channels += [Channel(name, None) for name, sources in matched.items() if not sources]
    return channels


def channel_groups(channels: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Group channel indices by class: the background first, then `names` in their order."""
    return [[i for i, channel in enumerate(channels) if channel == name] for name in (BACKGROUND, *names)]


def parse_labels(text: str) -> list[Structure]:
    """Read `1=hippocampus,2=amygdala` into structures; those called background are among them.

    Raises:
        InputError: when an entry is not `number=name`, or a number or name occurs twice.
    """
    structures = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        value, separator, name = entry.partition("=")
        if not separator or not value.strip().isdecimal() or not name.strip() or int(value) == 0:
            raise InputError(
                f"--labels has the entry '{entry}', which is not a label number and a name.",
                "Write for example --labels 1=hippocampus,2=amygdala (0 is the background).",
            )
        structures.append(Structure(name.strip(), int(value)))
    require_distinct(structures, "--labels")
    return structures


def parse_mapping(entries: Iterable[str]) -> dict[str, list[str]]:
    """Read `hippocampus=anterior hippocampus+posterior hippocampus` entries into a mapping.

    Raises:
        InputError: when an entry has no `=` or an empty side, or a structure occurs twice.
    """
    mapping: dict[str, list[str]] = {}
    for entry in entries:
        site, separator, sources = entry.rpartition("=")  # a site's name may hold the sign
        names = [name.strip() for name in sources.split("+")]
        if not separator or not site.strip() or not all(names):
            raise InputError(
                f"--map has the entry '{entry}', which is not of the form 'structure=base structure'.",
                "Write for example --map 'hippocampus=anterior hippocampus+posterior hippocampus' "
                "or --map amygdala=new.",
            )
        if normalized(site) in map(normalized, mapping):
            raise InputError(
                f"--map names the structure '{site.strip()}' twice.",
                "Write one entry for it, with all its base structures joined by '+'.",
            )
        mapping[site.strip()] = names
    return mapping


def require_distinct(structures: Sequence[Structure], where: str) -> None:
    """Refuse structures that share a name or a value; several values may be background.

    Raises:
        InputError: naming the first one that occurs twice.
    """
    named = [structure for structure in structures if not is_background(structure.name)]
    checks: tuple[tuple[Callable[[Structure], Any], str, Sequence[Structure]], ...] = (
        (lambda s: normalized(s.name), "name", named),
        (lambda s: s.value, "label number", structures),
    )
    for key, word, concerned in checks:
        seen: set[Any] = set()
        for structure in concerned:
            if key(structure) in seen:
                raise InputError(
                    f"{where}: '{structure.name}' (label {structure.value}) repeats the {word} of another structure.",
                    "Give every structure its own name and number.",
                    "duplicate_structure",
                )
            seen.add(key(structure))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"

"""Structures (named labels) and how a site's structures are served by a base model's output channels.

Matching goes by name, never by number: the number of a label is an accident of the program that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tcurlora.errors import InputError
from tcurlora_contract.names import BACKGROUND as BACKGROUND
from tcurlora_contract.names import normalized as normalized

IGNORE = "ignore"
"""nnU-Net's name for voxels that nobody labeled: they are no structure, and no background either."""


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


def is_background(name: str) -> bool:
    """Whether a label of that name says that there is nothing, as the segment that Slicer's Grow from seeds needs."""
    return normalized(name) == BACKGROUND


def is_ignored(name: str) -> bool:
    """Return whether a label of that name marks voxels that nobody labeled."""
    return normalized(name) == IGNORE


def same_name(a: Structure, b: Structure) -> bool:
    """Return whether two structures have one name, however it is written."""
    return normalized(a.name) == normalized(b.name)


def parse_labels(text: str) -> list[Structure]:
    """Read `1=hippocampus,2=amygdala` into structures; those called background or ignore are among them.

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


def require_distinct(structures: Sequence[Structure], where: str) -> None:
    """Refuse structures that share a name or a value; several values may be background, or be ignored.

    Raises:
        InputError: naming the first one that occurs twice.
    """
    named = [s for s in structures if not is_background(s.name) and not is_ignored(s.name)]
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

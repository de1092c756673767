"""How a site's structures are matched with those of a base model: by name, never by number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tcurlora.errors import InputError
from tcurlora.imaging.structures import normalized

NEW = "new"


SIDES = {"left", "right", "l", "r", "lh", "rh"}


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"

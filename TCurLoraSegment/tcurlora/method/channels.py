"""The output channels of an adapted network, and which structure each of them votes for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcurlora.imaging.structures import BACKGROUND


@dataclass(frozen=True)
class Channel:
    """One output channel of an adapted network: the structure it votes for, and the base channel it starts from.

    Several channels may vote for one structure; its probability is the sum of theirs. `source` is None for a
    structure that the base never saw.
    """

    name: str
    source: int | None


def plan_channels(
    matched: Mapping[str, Sequence[str]], base_channels: Sequence[str], kept: Sequence[str] = ()
) -> list[Channel]:
    """Lay out the output channels of the adapted network.

    Base channels keep their order and their weights. A base structure that the site does not label keeps its name where
    it is kept, and counts as background otherwise; one that several structures of the site share is repeated, once for
    each.

    Args:
        matched: the result of `match_structures`.
        base_channels: name of each output channel of the base network, the background included.
        kept: base structures that the site does not label and that are kept.
    """
    channels: list[Channel] = []
    for index, base_name in enumerate(base_channels):
        users = [site for site, sources in matched.items() if base_name in sources]
        channels += [Channel(name, index) for name in users or [base_name if base_name in kept else BACKGROUND]]
    channels += [Channel(name, None) for name, sources in matched.items() if not sources]
    return channels


def channel_groups(channels: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Group channel indices by class: the background first, then `names` in their order."""
    return [[i for i, channel in enumerate(channels) if channel == name] for name in (BACKGROUND, *names)]

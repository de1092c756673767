"""Advice for structures that a training did not learn at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tcurlora.evaluation.scores import Score

NOT_LEARNED = 0.01
"""Mean Dice below which a structure counts as not learned."""
FEW_VOXELS = 50
"""Voxels of the model below which a structure is too small to be learned well: a ball of less than 5 voxels across."""
ENOUGH_SUBJECTS = 8


def advice_on_structures(
    scores: Sequence[Score],
    subjects: Mapping[str, str],
    method: str,
    spacing: Sequence[float] | None,
    new: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Say what may help a structure that was never found.

    Args:
        scores: of the adapted models, on cases that they did not see.
        subjects: whose scan each case is.
        method: how they were trained.
        spacing: voxel size of the base model in mm; None where it is that of the scans.
        new: names of the structures that the base model does not know.

    Returns:
        For each structure that is in the truth and was not learned, sentences, the likeliest cause first.
    """
    advice: dict[str, list[str]] = {}
    for name in dict.fromkeys(score.structure for score in scores):
        present = [score for score in scores if score.structure == name and score.truth_volume_ml > 0]
        if not present or sum(score.dice or 0.0 for score in present) / len(present) >= NOT_LEARNED:
            continue
        said = []
        volume = sum(score.truth_volume_ml for score in present) / len(present)
        if spacing is not None and volume * 1000 / math.prod(spacing) < FEW_VOXELS:
            size = " x ".join(f"{side:g}" for side in spacing)
            count = volume * 1000 / math.prod(spacing)
            said.append(
                f"It is too small for this base model: about {count:.0f} of its voxels of {size} mm. "
                "Choose a base model of finer voxels, or join the structure with its surroundings."
            )
        known = len({subjects[score.case] for score in present})
        if known < ENOUGH_SUBJECTS:
            said.append(f"It is labeled in scans of {known} subject{'' if known == 1 else 's'}: label it in more.")
        if method != "full":
            said.append("Choose the method 'full', which learns a new structure in fewer steps (--method full).")
        said.append("Train for more steps (--steps)." if name in new else "Check that it is matched rightly (--map).")
        advice[name] = said
    return advice

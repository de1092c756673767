"""Interval and test for the mean of subjects' differences, and a correction for several comparisons.

scipy is imported when it is needed: commands that only list something must not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

RESAMPLES = 9_999
SEED = 0
INTERVAL_FROM = 3
"""Subjects from which on an interval is given."""
TEST_FROM = 2
"""Subjects from which on a p value is given."""


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the mean, subjects drawn again with replacement.

    Args:
        differences: one for each subject, shape (subjects,).

    Returns:
        Lower and upper end; None below 3 subjects.
    """
    from scipy.stats import bootstrap

    if len(differences) < INTERVAL_FROM:
        return None
    interval = bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=np.random.default_rng(SEED)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def sign_flip_test(differences: np.ndarray) -> float | None:
    """Return the two-sided p value of a sign-flip permutation test of the mean.

    It is the probability of a mean at least as far from zero if each subject's difference could as well have the other
    sign. Up to 13 subjects every combination of signs is tried, with more 9,999 random ones.

    Args:
        differences: one for each subject, shape (subjects,).

    Returns:
        The p value; None below 2 subjects.
    """
    from scipy.stats import permutation_test

    if len(differences) < TEST_FROM:
        return None

    def mean(sample: np.ndarray, axis: int) -> Any:
        return np.mean(sample, axis=axis)

    result = permutation_test(
        (differences,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        random_state=np.random.default_rng(SEED),
    )
    return float(result.pvalue)


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Correct p values for several comparisons (Holm, Scand J Stat 6, 1979): the chance of a false finding stays.

    >>> holm({"a": 0.01, "b": 0.04, "c": None})
    {'a': 0.02, 'b': 0.04, 'c': None}
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[name] = largest
    return corrected

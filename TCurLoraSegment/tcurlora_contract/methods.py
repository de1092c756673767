"""The methods that `adapt` offers, and how a run's time is shared out."""

from __future__ import annotations

from collections.abc import Mapping

METHODS: Mapping[str, str] = {
    "compact": "tensor cores of all convolutions (about 40 kB)",
    "paper": "transformer cores and the full decoder",
    "decoder": "the full decoder",
    "full": "all parameters (as large as the base)",
}
"""Which parameters each method trains, in the order in which they are offered."""
DEFAULT_METHOD = "compact"
COMPARED = ("base", "decoder", "full", "lora", "lora-matched", "random", "paper", "compact")
"""What `compare` takes where nothing is named, as far as it suits the base model."""
STEPS_SHARE = 0.75
"""Part of a run's time that its optimizer steps take; the rest is checks, evaluation and saving."""

"""The whole path on real MRI with nothing to download: adapt the shipped base to simulated patients, and compare."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tcurlora.cases.case import Case
from tcurlora.cases.channels import read_case_image
from tcurlora.cases.dataset import find_cases
from tcurlora.cases.labels import read_case_labels
from tcurlora.demo.patients import SIMULATION_NOTE, make_patients
from tcurlora.demo.pictures import side_by_side
from tcurlora.evaluation.gain import MEAN, compare_scores
from tcurlora.evaluation.reports import comparison_table
from tcurlora.imaging.grids import label_array, to_array
from tcurlora.inference.segmenter import Segmenter
from tcurlora.method.model import TensorCurModel
from tcurlora.models.adapter_files import load_adapter, require_absent
from tcurlora.runtime.devices import choose_device
from tcurlora.runtime.events import EventSink
from tcurlora.runtime.json_files import write_json
from tcurlora.training.adaptation import AdaptRequest, run_adapt
from tcurlora.training.target_site import Site, open_site, score_cases

BASE = "hippocampus_t1_unetr"
LABELED, NEW = 6, 6
SEED = 0
COLOR = (1.0, 0.76, 0.03)


def run_demo(out: Path, events: EventSink, steps: int | None = None) -> dict[str, Any]:
    """Make patients, adapt to some, test on the others, and write a table and a picture.

    Args:
        out: a new folder for the patients, the adapter, `comparison.json` and `comparison.png`.
        events: told of stages and progress.
        steps: of the training; None takes the preset's.

    Returns:
        `text` for the terminal, and the numbers behind it.

    Raises:
        InputError: when the folder exists or the package with the template is missing.
    """
    require_absent(out)
    events.emit("stage", name="patients", title=f"Simulating {LABELED + NEW} patients of a new scanner")
    make_patients(out / "labeled", LABELED, SEED)
    make_patients(out / "new", NEW, SEED, first=LABELED + 1)
    request = AdaptRequest(
        base=BASE,
        data=str(out / "labeled"),
        out=str(out / "adapter"),
        folds=0,
        steps=steps,
        seed=SEED,
        mapping=("hippocampus=anterior hippocampus+posterior hippocampus",),
    )
    summary = run_adapt(request, out / "job", events)
    events.emit("stage", name="test", title=f"Segmenting the {NEW} new patients with base and adapter")
    site, cases = open_site(BASE, out / "labeled", mapping=request.mapping), find_cases(out / "new").cases
    network, device = site.base.build(), choose_device()
    base = site.segmenter(TensorCurModel(network, site.config(network, request.method)), device)
    adapted = site.segmenter(load_adapter(network, out / "adapter"), device)
    base_scores, scores = (score_cases(segmenter, cases, site.structures) for segmenter in (base, adapted))
    comparison = compare_scores(base_scores, scores, {case.name: case.subject for case in cases})
    write_json(out / "comparison.json", {**comparison, "note": SIMULATION_NOTE, "scores": [asdict(s) for s in scores]})
    shutil.rmtree(out / "job", ignore_errors=True)
    _picture(site, cases[0], base, adapted, out / "comparison.png")
    before, after = comparison[MEAN]["base_dice"], comparison[MEAN]["adapted_dice"]
    verb = "raised" if after > before else "lowered"
    text = "\n".join(
        [
            "",
            comparison_table(comparison),
            "",
            f"{LABELED} labeled patients {verb} the Dice of {NEW} new ones from {before:.3f} to {after:.3f}; "
            f"the adapter holds {summary['trained']:,} trained parameters in {summary['bytes'] / 1000:.0f} kB.",
            SIMULATION_NOTE,
            f"Picture: {out / 'comparison.png'}",
        ]
    )
    return {"text": text, "base_dice": before, "adapted_dice": after, **summary, "picture": str(out / "comparison.png")}


def _picture(site: Site, case: Case, base: Segmenter, adapted: Segmenter, path: Path) -> None:
    image = read_case_image(case)
    results, captions = [], ["", "Harvard-Oxford atlas"]
    for segmenter in (base, adapted):
        results.append(label_array(segmenter.segment(image)[0]))
        (score,) = score_cases(segmenter, [case], site.structures)
        captions.append(f"Dice {score.dice:.2f}")
    side_by_side(
        to_array(image)[0],
        label_array(read_case_labels(case, site.structures)),
        results[0],
        results[1],
        path,
        "A simulated patient that was not used for the adaptation",
        captions,
        [replace(structure, color=COLOR) for structure in site.structures],
        image.GetSpacing(),
    )

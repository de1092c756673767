"""Make the pictures of README and tutorial: the panel in its main states, and slice and 3D views with the result.

    python Testing/Visual/make_pictures.py --out docs/pictures

The panel is the real one under the test harness's Qt, the views are rendered with Slicer's MRML libraries, the engine
is the real one. The scans are the simulated patients of `tcurlora demo`, so the pictures show no person.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "TCurLoraSegment")]

import harness  # noqa: E402

NAMES = ("MRT0012-3T-1211", "MRT0015-3T-1258", "MRT0056-3T-1327", "MRT0079-3T-1388")
"""Of the kind that real scans have, each with both sides of a person; the scans are simulated."""
FOLDS = 2
SEED = 20
WIDTH, HEIGHT, RUNNING_HEIGHT = 480, 900, 1000
RUN_S = 1800

MAKE_PATIENTS = "import sys; from pathlib import Path; from tcurlora.demo.patients import make_patients; "
MAKE_PATIENTS += "make_patients(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"


def load_patients(folder: Path) -> Any:
    """Make simulated patients in a process of the engine, and load them; all but the last with their labels.

    The labels come without a name, as those of a NIfTI file.

    Returns:
        Volume of the last patient.
    """
    import slicer

    names = [f"{name}_{side}" for name in NAMES for side in "LR"] + ["MRT0092-3T-1436_L"]
    command = [sys.executable, "-c", MAKE_PATIENTS, str(folder), str(len(names)), str(SEED)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "TCurLoraSegment")})
    volume = None
    for name, file in zip(names, sorted((folder / "images").iterdir()), strict=True):
        volume = slicer.util.loadVolume(str(file), {"name": name})
        if name == names[-1]:
            break
        labels = slicer.util.loadLabelVolume(str(folder / "labels" / file.name), {"name": "labels"})
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name}_hippocampus.nii.gz")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
        node.GetSegmentation().GetNthSegment(0).SetName("Segment_1")
        slicer.mrmlScene.RemoveNode(labels)
        node.SetDisplayVisibility(False)
    return volume


def main() -> None:
    """Drive the panel as a user would, and take pictures on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--minutes", type=int, default=8, help="time budget of the adaptation in the pictures")
    parser.add_argument("--all", action="store_true", help="also pictures that the documents do not show")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TCURLORA_HOME"] = str(Path(scratch) / "home")
        harness.start_panel()
        take_pictures(Path(scratch), options.out, options.minutes, options.all)


def take_pictures(scratch: Path, out: Path, minutes: int, everything: bool) -> None:
    """Run through the panel's tabs from left to right."""
    import slicer
    from harness.views import open_views

    others = out if everything else scratch  # for looking at, not for the documents
    volume = load_patients(scratch / "patients")
    widget = harness.open_module("TCurLoraSegment")
    panel, ui = widget.panel, widget.ui
    harness.wait_until(lambda: panel.models and len(panel.devices) > 1, timeout_s=240)

    ui.addFromSceneButton.click()
    harness.wait_until(lambda: ui.checkCasesButton.enabled, timeout_s=240)
    print(ui.casesMessage.text, ui.questionLabel.text, sep="\n")
    _grab(widget, out / "question.png")
    ui.questionYesButton.click()
    ui.checkCasesButton.click()
    harness.wait_until(lambda: ui.checkCasesButton.enabled, timeout_s=240)
    parameters = panel.parameters
    for key, value in (("name", "Our 3 T scanner"), ("minutes", minutes), ("folds", FOLDS)):
        parameters.set(key, value)
    panel.refresh()
    _grab(widget, others / "cases.png")
    ui.adaptButton.click()
    harness.wait_until(
        lambda: not panel.adapt_section.running or ("all" in ui.stageLabel.text and ui.adaptProgress.value > 10),
        timeout_s=RUN_S,
    )
    _grab(widget, out / "panel.png", RUNNING_HEIGHT)
    harness.wait_until(lambda: not panel.adapt_section.running, timeout_s=RUN_S)
    print(ui.stageLabel.text, ui.resultSummary.text, sep="\n")
    ui.casesSection.collapsed = True
    _grab(widget, out / "result.png")

    panel.show_tab("segmentTab")
    parameters.set_node("input", volume)
    parameters.set("uncertainty", True)
    panel.refresh()
    ui.segmentButton.click()
    harness.wait_until(lambda: not panel.segment_section.running, timeout_s=RUN_S)
    print(ui.segmentStatus.text)
    _grab(widget, others / "segment.png")
    panel.show_tab("modelsTab")
    harness.wait_until(lambda: ui.adaptersTable.rowCount == 1, timeout_s=60)
    ui.adaptersTable.selectRow(0)
    ui.cardButton.click()
    _grab(widget, others / "models.png")

    result = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
    ui.show3DButton.click()
    with open_views() as views:
        views.show(volume)
        views.center_on(result)
        views.save(out / "views.png")


def _grab(widget: Any, file: Path, height: int = HEIGHT) -> None:
    harness.process_events(0.3)
    harness.show(widget, WIDTH, height)
    harness.process_events(0.3)
    harness.grab(widget, file)


if __name__ == "__main__":
    main()

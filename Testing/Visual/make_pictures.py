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

TRAINED, NEW = 4, 1
FOLDS = 2
SEED = 20
WIDTH, HEIGHT, RESULT_HEIGHT = 470, 1180, 900
RUN_S = 1800

MAKE_PATIENTS = "import sys; from pathlib import Path; from tcurlora.demo.patients import make_patients; "
MAKE_PATIENTS += "make_patients(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"


def load_patients(folder: Path) -> tuple[Any, Any]:
    """Make simulated patients in a process of the engine, and load them; all but the last with their labels.

    Returns:
        Volume of the last patient, and its true labels as a segmentation that is not in the scene's cases.
    """
    import slicer

    command = [sys.executable, "-c", MAKE_PATIENTS, str(folder), str(TRAINED + NEW), str(SEED)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "TCurLoraSegment")})
    volume = truth = None
    files = sorted((folder / "images").iterdir())
    for number, file in enumerate(files, start=1):
        volume = slicer.util.loadVolume(str(file), {"name": f"Patient {number}"})
        labels = slicer.util.loadLabelVolume(str(folder / "labels" / file.name), {"name": "labels"})
        name = f"Patient {number} hippocampus" if number <= TRAINED else "truth"
        truth = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        truth.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, truth)
        truth.GetSegmentation().GetNthSegment(0).SetName("hippocampus")
        slicer.mrmlScene.RemoveNode(labels)
        truth.SetDisplayVisibility(False)
    return volume, truth


def main() -> None:
    """Drive the panel as a user would, and take pictures on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--minutes", type=int, default=8, help="time budget of the adaptation in the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TCURLORA_HOME"] = str(Path(scratch) / "home")
        harness.start_panel()
        take_pictures(Path(scratch), options.out, options.minutes)


def take_pictures(scratch: Path, out: Path, minutes: int) -> None:
    """Run through the panel's sections from top to bottom."""
    import slicer
    from harness.views import open_views

    volume, truth = load_patients(scratch / "patients")
    slicer.mrmlScene.RemoveNode(truth)
    widget = harness.open_module("TCurLoraSegment")
    panel, ui = widget.panel, widget.ui
    harness.wait_until(lambda: panel.models and len(panel.devices) > 1, timeout_s=120)
    harness.show(widget, WIDTH, HEIGHT)

    ui.addFromSceneButton.click()
    ui.checkCasesButton.click()
    harness.wait_until(lambda: ui.checkCasesButton.enabled, timeout_s=120)
    parameters = panel.parameters
    parameters.set("name", "Our 3 T scanner")
    parameters.set("minutes", minutes)
    parameters.set("folds", FOLDS)
    panel.refresh()
    ui.adaptButton.click()
    ui.segmentSection.collapsed = True
    harness.wait_until(
        lambda: not panel.adapt_section.running or ("all" in ui.stageLabel.text and ui.adaptProgress.value > 10),
        timeout_s=RUN_S,
    )
    harness.process_events(0.2)
    harness.grab(widget, out / "panel.png")
    harness.wait_until(lambda: not panel.adapt_section.running, timeout_s=RUN_S)
    print(ui.stageLabel.text, ui.resultSummary.text, sep="\n")

    ui.segmentSection.collapsed = False
    parameters.set_node("input", volume)
    parameters.set("uncertainty", True)
    panel.refresh()
    ui.segmentButton.click()
    harness.wait_until(lambda: not panel.segment_section.running, timeout_s=RUN_S)
    print(ui.segmentStatus.text)
    for name in ("baseModelSection", "casesSection", "adaptSection"):
        getattr(ui, name).collapsed = True
    ui.adaptersSection.collapsed = False
    harness.wait_until(lambda: ui.adaptersTable.rowCount == 1, timeout_s=60)
    ui.adaptersTable.selectRow(0)
    harness.show(widget, WIDTH, RESULT_HEIGHT)
    harness.process_events(0.5)
    harness.grab(widget, out / "result.png")

    result = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
    ui.show3DButton.click()
    with open_views() as views:
        views.show(volume)
        views.center_on(result)
        views.save(out / "views.png")


if __name__ == "__main__":
    main()

"""The button "Try it with sample scans": simulated patients of another scanner, made on this computer and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.installation import install_sample_package, sample_package_words
from TCurLoraSegmentLib.jobs import Job, new_job
from TCurLoraSegmentLib.sample_data import load_patients
from TCurLoraSegmentLib.scene_cases import pair_scene
from TCurLoraSegmentLib.widgets.waiting import waiting

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

LABELED, NEW, SEED = 6, 1, 20
MINUTES = 5
"""Time budget that suffices for them on a computer without a graphics card."""


class SamplePatients:
    """Has the engine make patients, loads them and adds them as cases."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = panel.ui
        self._running = False
        self._scene = 0
        panel.ui.trySampleButton.connect("clicked()", self.start)

    def scene_closed(self) -> None:
        """The scene that they were for is gone."""
        self._scene += 1

    def start(self) -> None:
        """Make the patients."""
        if self._running:
            return
        try:
            job = new_job("sample", "sample")
        except UserError as error:
            self._say(str(error))
            return
        self._set_running(True)
        self._say(_("Simulating {count} patients...").format(count=LABELED + NEW))
        folder, scene = job.results, self._scene
        arguments = ("demo", "--patients", str(LABELED + NEW), "--seed", str(SEED), "--out", str(folder))

        def answered(_answer: Mapping[str, Any]) -> None:
            if scene == self._scene:
                self._load(folder)
            job.delete()

        def failed(error: UserError) -> None:
            self._failed(error, job)

        query = self._panel.query(*arguments, on_answer=answered, on_error=failed, on_end=self._ended)
        if query is None:
            job.delete()

    def _load(self, folder: Path) -> None:
        try:
            with waiting():
                volumes = load_patients(folder, LABELED)
        except (UserError, RuntimeError) as error:
            self._say(str(error))
            return
        added = {volume.GetID() for volume in volumes}
        self._panel.cases_section.add([pair for pair in pair_scene()[0] if pair.volume_id in added])
        parameters = self._panel.parameters
        if parameters.get("minutes") > MINUTES:
            parameters.set("minutes", MINUTES)
        parameters.set_node("input", volumes[-1])
        self._say(
            _(
                "{count} simulated patients of another scanner, with labels. Press 'Adapt model'; it takes about "
                "{minutes} minutes. Then segment '{new}', which has none."
            ).format(count=LABELED, minutes=MINUTES, new=volumes[-1].GetName())
        )
        self._panel.refresh()

    def _failed(self, error: UserError, job: Job) -> None:
        job.delete()
        if error.code != "missing_package":
            self._say(str(error))
            return
        own = self._panel.engine().own
        if not own:
            self._say(sample_package_words(own))
        elif slicer.util.confirmOkCancelDisplay(sample_package_words(own)):
            try:
                with waiting():
                    install_sample_package()
            except UserError as problem:
                self._say(str(problem))
                return
            self.start()
        else:
            self._say("")

    def _ended(self) -> None:
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self._running = running
        self._ui.trySampleButton.setEnabled(not running)

    def _say(self, text: str) -> None:
        self._panel.cases_section.tell(text)

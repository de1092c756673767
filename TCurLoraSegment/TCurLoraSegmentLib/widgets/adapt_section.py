"""Section "Adapt model": settings, the run with its progress, and runs that were broken off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.adapt_task import Adapted, AdaptTask, prepare_adapt
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.jobs import Job, unfinished_jobs
from TCurLoraSegmentLib.requests import METHODS, AdaptSettings, free_name
from TCurLoraSegmentLib.widgets.labels import offer, quietly, say
from TCurLoraSegmentLib.widgets.live_plot import LivePlot
from TCurLoraSegmentLib.widgets.waiting import waiting

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

LOG_BYTES = 20_000
SPEED_SETTING = "TCurLoraSegment/SecondsPerStep"


class AdaptSection:
    """Starts, shows, cancels and resumes adaptations, one at a time."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._task: AdaptTask | None = None
        self._log: Path | None = None
        self._log_shown = -1
        self._unfinished: Job | None = None
        self._scene_is_gone = False
        self._stage_name = ""
        self._plot = LivePlot(ui.plotLabel)
        self._spins = {"minutes": ui.minutesSpin, "rank": ui.rankSpin, "steps": ui.stepsSpin}
        self._spins |= {"folds": ui.foldsSpin, "seed": ui.seedSpin}
        for key, spin in self._spins.items():
            spin.connect("valueChanged(int)", lambda value, key=key: self._store(key, value))
        for method in METHODS:
            ui.methodCombo.addItem(_titles()[method])
        ui.methodCombo.connect("currentIndexChanged(int)", lambda index: self._store("method", METHODS[index]))
        ui.deviceCombo.connect("currentIndexChanged(int)", self._on_device)
        ui.adapterNameEdit.connect("textEdited(QString)", lambda text: self._store("name", text))
        ui.crossValidationCheck.connect("toggled(bool)", lambda on: self._store("cross_validation", bool(on)))
        ui.adaptButton.connect("clicked()", self._on_adapt)
        ui.cancelAdaptButton.connect("clicked()", self._on_cancel)
        ui.resumeButton.connect("clicked()", self._on_resume)
        ui.discardButton.connect("clicked()", self._on_discard)
        ui.logGroup.connect("toggled(bool)", self._show_log)

    @property
    def running(self) -> bool:
        """Whether an adaptation runs."""
        return self._task is not None

    def settings(self) -> AdaptSettings:
        """What the parameter node says."""
        get = self._panel.parameters.get
        keys = ("base", "name", "minutes", "cross_validation", "rank", "steps", "folds", "seed")
        return AdaptSettings(
            **{key: get(key) for key in keys},
            method=self._method(),
            device=self._panel.device(),
            mapping=self._panel.structures_section.mapping(),
            names=self._panel.structures_section.names(),
        )

    def _method(self) -> str:
        """The method that is chosen; the usual one where a scene names one that there is not."""
        method = str(self._panel.parameters.get("method"))
        return method if method in METHODS else METHODS[0]

    def scene_closed(self) -> None:
        """The scene of the cases is gone: nothing of it must appear in the next one."""
        self._scene_is_gone = True
        if not self.running:
            self._stage("")
            self._log = None
            self._ui.logText.setPlainText("")
            self._plot.clear()

    def kill(self) -> None:
        """End a run at once: the panel goes away."""
        if self._task is not None:
            self._task.kill()

    def refresh(self) -> None:
        """Show the parameter node, and what still stands in the way of a run."""
        ui, get = self._ui, self._panel.parameters.get
        if not get("name"):
            self._panel.parameters.set("name", free_name(_("My site"), self._names()))
        for key, spin in self._spins.items():
            quietly(spin, "setValue", get(key))
        quietly(ui.methodCombo, "setCurrentIndex", METHODS.index(self._method()))
        devices, device = self._panel.devices, self._panel.device()
        quietly(ui.deviceCombo, "setCurrentIndex", devices.index(device) if device in devices else 0)
        quietly(ui.crossValidationCheck, "setChecked", get("cross_validation"))
        if ui.adapterNameEdit.text != get("name"):
            quietly(ui.adapterNameEdit, "setText", get("name"))
        ui.stepsSpin.setEnabled(get("minutes") == 0)
        ui.foldsSpin.setEnabled(get("cross_validation"))
        ui.rankSpin.setEnabled(self._method() in ("compact", "paper"))
        say(ui.minutesMeaning, self._meaning())
        missing = self._missing()
        ui.adaptButton.setEnabled(not missing and not self.running)
        if self.running:
            tooltip = _("Not possible yet: a run is in progress.")
        elif missing:
            tooltip = _("Still missing:\n{list}").format(list="\n".join(f"- {text}" for text in missing))
        else:
            tooltip = _("Adapt the base model to the chosen cases; runs in the background")
        ui.adaptButton.setToolTip(tooltip)
        ui.cancelAdaptButton.setEnabled(self.running)
        ui.adaptProgress.setVisible(self.running)
        ui.timeLeftLabel.setVisible(self.running and ui.timeLeftLabel.text != "")
        say(ui.stageLabel, ui.stageLabel.text)
        ui.plotLabel.setVisible(self._plot.drawn)
        self._refresh_unfinished()

    def devices_changed(self) -> None:
        """Offer the devices that there are now."""
        titles = [_("automatic") if device == "auto" else device for device in self._panel.devices]
        offer(self._ui.deviceCombo, titles, 0)

    def look_for_unfinished(self) -> None:
        """Find a run that was broken off, to offer its resuming."""
        own = self._task.job.path if self._task else None
        self._unfinished = next((job for job in unfinished_jobs() if job.path != own), None)
        self._refresh_unfinished()

    def _missing(self) -> list[str]:
        cases = self._panel.cases_section.chosen()
        return [
            *self._panel.engine_problems(),
            *self._panel.base_model_section.problems(),
            *self.settings().missing(len(cases), self._names()),
            *self._panel.structures_section.problems(),
        ]

    def _names(self) -> list[str]:
        return [str(entry["name"]) for entry in self._panel.adapters]

    def _meaning(self) -> str:
        minutes = self._panel.parameters.get("minutes")
        if not minutes:
            return _("Off: uses the steps set under Advanced.")
        speed = slicer.app.userSettings().value(self._speed_key())
        try:
            seconds = float(speed)
        except (TypeError, ValueError):
            return _("The number of steps is measured when the run starts.")
        steps = int(minutes * 60 * 0.75 / seconds)
        return _("About {steps} optimizer steps in all on this device, as measured last.").format(steps=steps)

    def _speed_key(self) -> str:
        return f"{SPEED_SETTING}/{Path(self._panel.parameters.get('base')).name}/{self._panel.device()}"

    def _store(self, key: str, value: Any) -> None:
        self._panel.parameters.set(key, value)
        self._panel.refresh()

    def _on_device(self, index: int) -> None:
        if 0 <= index < len(self._panel.devices):
            self._store("device", self._panel.devices[index])

    def _on_adapt(self) -> None:
        try:
            with waiting():
                job = prepare_adapt(
                    self.settings(), self._panel.cases_section.chosen(), self._panel.cases_section.subjects()
                )
        except UserError as error:
            self._stage(str(error))
            return
        self._start(job, resume=False)

    def _on_resume(self) -> None:
        if self._unfinished is not None and not self.running:
            self._start(self._unfinished, resume=True)

    def _on_discard(self) -> None:
        if self._unfinished is not None:
            self._unfinished.delete()
            self.look_for_unfinished()

    def _start(self, job: Job, resume: bool) -> None:
        ui = self._ui
        try:
            self._task = AdaptTask(self._panel.engine(), job, resume, self._on_event, self._on_finished)
        except (UserError, KeyError, TypeError) as error:
            self._stage(str(error) if isinstance(error, UserError) else _("This run cannot be resumed."))
            if not resume:
                job.delete()
            return
        self._unfinished = None
        self._scene_is_gone = resume  # a run from another sitting had another scene
        self._log = job.log
        self._plot.clear()
        ui.adaptProgress.setRange(0, 0)  # moves without a measure until the first one comes
        say(ui.timeLeftLabel, "")
        self._stage(_("Starting..."))
        self._panel.warm.end()  # training needs the memory that it holds
        self._panel.run(self._task)
        self._panel.refresh()

    def _on_cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._ui.cancelAdaptButton.setEnabled(False)
            self._stage(_("Cancelling..."))

    def _on_event(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "stage":
            self._stage_name = str(event.get("name", ""))
            self._stage(str(event.get("title", "")))
            self._plot.next_training()
            self._busy()
            if event.get("seconds_per_step"):
                slicer.app.userSettings().setValue(self._speed_key(), str(event["seconds_per_step"]))
        elif kind == "progress":
            self._progress(event)
        elif kind == "metric":
            name = str(event.get("name", ""))
            if name == "loss":
                self._plot.add_loss(float(event["value"]))
            elif name in ("base_dice", "adapted_dice"):
                self._plot.add_dice(name.partition("_")[0], float(event["value"]))
            self._plot.draw()
            self._ui.plotLabel.setVisible(self._plot.drawn)
        self._show_log()

    def _busy(self) -> None:
        """Show that something is done of which nobody knows how long it takes."""
        self._ui.adaptProgress.setRange(0, 0)
        say(self._ui.timeLeftLabel, "")

    def _progress(self, event: Mapping[str, Any]) -> None:
        bar, eta = self._ui.adaptProgress, event.get("eta_s")
        if self._stage_name == "prepare" and int(event["step"]) >= int(event["total"]):
            self._stage(_("Measuring the speed"))
            self._busy()
            return
        bar.setRange(0, max(int(event["total"]), 1))
        bar.setValue(int(event["step"]))
        left = "" if eta is None else _("about {time} left in this stage").format(time=_duration(float(eta)))
        say(self._ui.timeLeftLabel, left)

    def _on_finished(self, adapted: Adapted) -> None:
        self._task = None
        if adapted.outcome.ok and adapted.report is not None:
            self._stage("\n".join([_("The adapter '{name}' is ready.").format(name=adapted.name), *adapted.warnings]))
            self._panel.parameters.set("model", adapted.name)
            self._panel.parameters.set("name", free_name(adapted.name, [*self._names(), adapted.name]))
            names = {} if self._scene_is_gone else adapted.case_names
            if self._scene_is_gone:
                self._stage(_("The adapter is ready."))
            self._panel.result_section.show(adapted.report, adapted.name, names, add_nodes=not self._scene_is_gone)
            self._panel.reload_adapters()
        elif adapted.outcome.cancelled:
            self._stage(_("Cancelled."))
        else:
            self._stage(adapted.outcome.sentence())
        self._show_log()
        self.look_for_unfinished()
        self._panel.refresh()

    def _refresh_unfinished(self) -> None:
        job = self._unfinished
        self._ui.unfinishedFrame.setVisible(job is not None and not self.running)
        if job is not None:
            name = job.context().get("name", job.path.name)
            text = _("The adaptation '{name}' was not finished. Copies of its labeled scans are kept for 'Resume'.")
            say(self._ui.unfinishedLabel, text.format(name=name))

    def log_text(self) -> str:
        """The log of the last run, as far as it is still there."""
        try:
            return "" if self._log is None else self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return str(self._ui.logText.plainText)

    def _show_log(self, _open: bool = True) -> None:
        if self._ui.logGroup.collapsed or self._log is None:
            return
        try:
            size = self._log.stat().st_size
            if size == self._log_shown:
                return
            with self._log.open("rb") as stream:
                stream.seek(max(size - LOG_BYTES, 0))
                text = stream.read().decode("utf-8", errors="replace")
        except OSError:
            return
        self._log_shown = size
        self._ui.logText.setPlainText(text)

    def _stage(self, text: str) -> None:
        """Say what is done; while a run is in progress, with the name of its adapter."""
        named = _("'{name}': {stage}").format(name=self._task.name, stage=text) if self._task and text else text
        say(self._ui.stageLabel, named)


def _titles() -> dict[str, str]:
    return {
        "compact": _("compact: tensor cores of all convolutions (about 40 kB)"),
        "paper": _("paper: transformer cores and the full decoder"),
        "decoder": _("decoder only"),
        "full": _("full: all parameters (as large as the base)"),
    }


def _duration(seconds: float) -> str:
    minutes = int(seconds / 60)
    return _("{n} min").format(n=minutes) if minutes else _("{n} s").format(n=int(seconds))

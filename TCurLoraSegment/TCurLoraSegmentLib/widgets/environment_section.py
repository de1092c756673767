"""Section "Environment": what works on this computer, and how what is missing gets here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.bug_report import compose
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.installation import InstallPlan, install, plan_installation
from TCurLoraSegmentLib.query import Query
from TCurLoraSegmentLib.widgets.labels import say
from TCurLoraSegmentLib.widgets.tables import fill, prepare

if TYPE_CHECKING:
    from TCurLoraSegmentLib.widgets.panel import Panel

PYTHON_SETTING = "TCurLoraSegment/Python"
DEVICE = "device "


class EnvironmentSection:
    """Shows what `tcurlora doctor` finds, and installs what is missing after consent."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._ui = ui = panel.ui
        self._plan: InstallPlan | None = None
        self._query: Query | None = None
        self._installing = False
        self._failure = ""
        self._items: list[Mapping[str, Any]] = []
        prepare(ui.environmentTable, (2,))
        ui.bugReportButton.connect("clicked()", self._on_bug_report)
        ui.noticeFrame.setVisible(False)
        ui.pythonPath.currentPath = str(slicer.app.userSettings().value(PYTHON_SETTING) or "")
        ui.noticeButton.connect("clicked()", self._on_notice)
        ui.checkEnvironmentButton.connect("clicked()", self.check)
        ui.installButton.connect("clicked()", self._on_install)
        ui.pythonPath.connect("currentPathChanged(QString)", self._on_python)

    def problems(self) -> list[str]:
        """Why the engine cannot compute, one sentence each; none while that is not known."""
        if self._installing:
            return [_("What is missing is being installed.")]
        if self._failure:
            return [self._failure]
        if self._plan is None or self._plan.complete:
            return []
        if self._plan.missing:
            names = ", ".join(self._plan.missing)
            return [_("The engine needs {names}: see Environment.").format(names=names)]
        return list(self._plan.blockers)

    def check(self) -> None:
        """Ask the engine what works here."""
        if self._query is not None:
            self._query.cancel()  # it may be another Python's, and answer last
        say(self._ui.environmentSummary, _("Looking..."))
        self._ui.checkEnvironmentButton.setEnabled(False)
        self._query = self._panel.query("doctor", on_answer=self._answered, on_error=self._failed)

    def _refresh_buttons(self) -> None:
        self._ui.checkEnvironmentButton.setEnabled(not self._installing)
        self._ui.pythonPath.setEnabled(not self._installing)
        installable = self._plan is not None and self._plan.installable
        self._ui.installButton.setEnabled(installable and not self._installing)

    def _answered(self, report: Mapping[str, Any]) -> None:
        self._failure = ""
        items = report["items"]
        try:
            self._plan = plan_installation(report, self._panel.engine())
        except UserError as error:
            self._failed(error)
            return
        self._items = list(items)
        rows = [["" if item["ok"] else "!", item["name"], item["value"]] for item in items]
        fill(self._ui.environmentTable, rows, [item["remedy"] for item in items])
        self._panel.devices = ["auto"] + [
            item["name"].removeprefix(DEVICE) for item in items if item["name"].startswith(DEVICE) and item["ok"]
        ]
        self._panel.adapt_section.devices_changed()
        lines = [self._plan.words()] if not self._plan.complete else []
        lines += [f"{item['name']}: {item['value']}. {item['remedy']}" for item in items if not item["ok"]]
        self._show("\n".join(lines) or _("Everything works here."))

    def _failed(self, error: UserError) -> None:
        self._failure = str(error)
        self._plan = None
        self._items = []  # they are those of another Python
        fill(self._ui.environmentTable, [])
        for label in (self._ui.adaptersMessage, self._ui.modelsMessage):
            say(label, "")  # the notice says it for all
        self._panel.devices = ["auto"]
        self._panel.adapt_section.devices_changed()
        self._show(self._failure)

    def _show(self, text: str) -> None:
        ui = self._ui
        say(ui.environmentSummary, text)
        self._refresh_buttons()
        problems = self.problems()
        ui.noticeFrame.setVisible(bool(problems))
        ui.noticeLabel.setText(problems[0] if problems else "")
        self._panel.refresh()

    def _on_notice(self) -> None:
        self._panel.show_tab("modelsTab")
        self._ui.environmentSection.collapsed = False
        self._panel.bring_into_view(self._ui.environmentSection)

    def _on_install(self) -> None:
        # Slicer handles events while pip runs, so that the panel can be used meanwhile.
        if self._plan is None or self._installing:
            return
        wheels = str(self._ui.wheelsPath.currentPath).strip()
        before = self._ui.environmentSummary.text
        self._panel.warm.end()  # it keeps files in use, and goes on with what it has loaded
        self._show_installing(True)
        try:
            done = install(self._plan, self._agreed, Path(wheels) if wheels else None)
        except UserError as error:
            say(self._ui.environmentSummary, str(error))
            return
        finally:
            self._panel.warm.end()
            self._show_installing(False)
        if done:
            self.check()
        else:
            say(self._ui.environmentSummary, before)

    def _agreed(self, text: str) -> bool:
        agreed = bool(slicer.util.confirmOkCancelDisplay(text))
        if agreed:
            say(self._ui.environmentSummary, _("Installing... This can take many minutes."))
        return agreed

    def _show_installing(self, installing: bool) -> None:
        self._installing = installing
        self._refresh_buttons()
        self._panel.refresh()

    def _on_python(self, path: str) -> None:
        slicer.app.userSettings().setValue(PYTHON_SETTING, path)
        self._panel.warm.end()
        self._panel.reload()

    def _on_bug_report(self) -> None:
        version = f"{slicer.app.applicationVersion}" if hasattr(slicer.app, "applicationVersion") else "?"
        names = [node.GetName() or "" for node in slicer.util.getNodesByClass("vtkMRMLStorableNode")]
        names += [str(entry["name"]) for entry in self._panel.adapters]
        names += [str(self._panel.parameters.get("name")), *self._panel.cases_section.people()]
        text = compose(version, self._items, self._panel.adapt_section.log_text(), names)
        qt.QApplication.clipboard().setText(text)
        say(self._ui.environmentSummary, _("Copied. Read it before you send it to anybody."))

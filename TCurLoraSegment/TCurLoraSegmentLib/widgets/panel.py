"""The panel as a whole: what its sections share, and when they are refreshed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer

from TCurLoraSegmentLib.engine import Engine, engine_of
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.jobs import tidy
from TCurLoraSegmentLib.parameters import Parameters
from TCurLoraSegmentLib.query import Query
from TCurLoraSegmentLib.requests import AdaptSettings
from TCurLoraSegmentLib.warm_worker import WarmWorker
from TCurLoraSegmentLib.widgets.adapt_section import AdaptSection
from TCurLoraSegmentLib.widgets.adapters_section import AdaptersSection
from TCurLoraSegmentLib.widgets.base_model_section import BaseModelSection
from TCurLoraSegmentLib.widgets.cases_section import CasesSection
from TCurLoraSegmentLib.widgets.environment_section import PYTHON_SETTING, EnvironmentSection
from TCurLoraSegmentLib.widgets.labels import say
from TCurLoraSegmentLib.widgets.models_section import ModelsSection
from TCurLoraSegmentLib.widgets.pump import Pump, Work
from TCurLoraSegmentLib.widgets.result_section import ResultSection
from TCurLoraSegmentLib.widgets.sample_patients import SamplePatients
from TCurLoraSegmentLib.widgets.segment_section import SegmentSection
from TCurLoraSegmentLib.widgets.structures_section import StructuresSection

SECTIONS = (
    *("casesSection", "adaptSection", "resultSection", "adaptersSection", "modelsSection", "environmentSection"),
    *("advancedGroup", "logGroup", "moreScansGroup"),
)
TABS = ("adaptTab", "segmentTab", "modelsTab")
KEYS = (("Alt+PgDown", 1), ("Alt+PgUp", -1))
"""Keys that show the next case, and the one before."""


class Panel:
    """Holds the sections, and what more than one of them needs.

    Args:
        ui: the widgets of the .ui file by their names.
        node: the module's parameter node.

    Attributes:
        parameters: the user's choices.
        models: the base models, as the engine lists them.
        adapters: the adapters, as the engine lists them.
        devices: what the engine can compute on; the first is `auto`.
        warm: the process that segments, which stays for the next time.
    """

    def __init__(self, ui: Any, node: slicer.vtkMRMLScriptedModuleNode) -> None:
        self.ui = ui
        self.parameters = Parameters(node)
        self.models: list[Mapping[str, Any]] = []
        self.adapters: list[Mapping[str, Any]] = []
        self.devices: list[str] = ["auto"]
        self.warm = WarmWorker()
        self._pump = Pump()
        self._queries: list[Query] = []
        self._listings: dict[str, Query | None] = {}
        self._asked = False
        self._shown = False
        self._refreshing = False
        self._refresh_is_due = False
        self._closed = False
        self.base_model_section = BaseModelSection(self)
        self.cases_section = CasesSection(self)
        self.structures_section = StructuresSection(self)
        self.adapt_section = AdaptSection(self)
        self.result_section = ResultSection(self)
        self.segment_section = SegmentSection(self)
        self.adapters_section = AdaptersSection(self)
        self.models_section = ModelsSection(self)
        self.environment_section = EnvironmentSection(self)
        self.sample_patients = SamplePatients(self)
        self.adapt_section.devices_changed()
        for name in SECTIONS:
            # What was hidden while its section was closed would appear when it is opened.
            signal = "toggled(bool)" if name.endswith("Group") else "contentsCollapsed(bool)"
            getattr(ui, name).connect(signal, lambda _on: self.refresh_later())
        ui.tabs.connect("currentChanged(int)", self._on_tab)
        self._on_tab(ui.tabs.currentIndex)
        self._shortcuts = [self._shortcut(key, by) for key, by in KEYS]
        self.refresh()

    def _shortcut(self, key: str, by: int) -> qt.QShortcut:
        shortcut = qt.QShortcut(qt.QKeySequence(key), self.ui.tabs)
        shortcut.setContext(qt.Qt.ApplicationShortcut)  # the views have the focus while one looks at cases
        shortcut.setEnabled(False)
        shortcut.connect("activated()", lambda: self.cases_section.step(by))
        return shortcut

    def _on_tab(self, current: int) -> None:
        """Let only the tab that is shown say how high the panel is."""
        for number, name in enumerate(TABS):
            vertical = qt.QSizePolicy.Preferred if number == current else qt.QSizePolicy.Ignored
            getattr(self.ui, name).setSizePolicy(qt.QSizePolicy.Preferred, vertical)
        self.ui.tabs.updateGeometry()
        self.refresh_later()

    def show_tab(self, name: str) -> None:
        """Show a tab."""
        self.ui.tabs.setCurrentIndex(TABS.index(name))

    def bring_into_view(self, widget: qt.QWidget) -> None:
        """Scroll Slicer's panel so that a widget is seen, once it has its place."""
        if not self._closed:
            qt.QTimer.singleShot(0, lambda: self._scroll_to(widget))

    def _scroll_to(self, widget: qt.QWidget) -> None:
        parent = None if self._closed else widget.parentWidget()
        while parent is not None:
            if parent.inherits("QScrollArea"):
                parent.ensureWidgetVisible(widget)
            parent = parent.parentWidget()

    def enter(self) -> None:
        """The panel is shown: ask the engine what there is, the first time."""
        self._shown = True
        for shortcut in self._shortcuts:
            shortcut.setEnabled(True)
        if not self._asked:
            self._asked = True
            self.reload()
            self.adapt_section.look_for_unfinished()
            tidy()
        self.refresh()

    def exit(self) -> None:
        """The panel is hidden; what runs goes on."""
        self._shown = False
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)

    def nodes_changed(self) -> None:
        """Nodes came or went: they are shown now, or when the panel is shown again."""
        if self._shown:
            self.refresh_later()

    def reload(self) -> None:
        """Ask the engine again for everything that the panel shows."""
        self.reload_models()
        self.reload_adapters()
        self.environment_section.check()

    def set_parameter_node(self, node: slicer.vtkMRMLScriptedModuleNode) -> None:
        """Work with the parameter node of another scene."""
        self.parameters = Parameters(node)
        self.base_model_section.models_changed()
        self.segment_section.models_changed()
        self.refresh()

    def scene_closed(self) -> None:
        """Forget nodes of the scene that is gone; what runs goes on."""
        self.cases_section.scene_closed()
        self.structures_section.clear()
        self.sample_patients.scene_closed()
        self.segment_section.scene_closed()
        self.adapt_section.scene_closed()
        self.result_section.clear()

    def close(self) -> None:
        """The panel goes away: end everything that runs. An adaptation can be resumed later."""
        if self._closed:
            return
        self._closed = True
        for query in self._queries:
            query.cancel()
        self.adapt_section.kill()
        self.segment_section.kill()
        self.warm.kill()
        self._pump.stop()

    def refresh(self) -> None:
        """Show the parameter node in all sections."""
        if self._refreshing or self._closed:
            return
        self._refreshing = True
        try:
            for section in (
                self.base_model_section,
                self.structures_section,
                self.cases_section,
                self.adapt_section,
                self.result_section,
                self.segment_section,
            ):
                section.refresh()
        finally:
            self._refreshing = False

    def refresh_later(self) -> None:
        """Refresh when the event that is being handled is over: its widget may be rebuilt."""
        if not self._refresh_is_due and not self._refreshing:
            self._refresh_is_due = True
            qt.QTimer.singleShot(0, self._refresh_now)

    def _refresh_now(self) -> None:
        self._refresh_is_due = False
        self.refresh()  # which does nothing where the panel, and its widgets, are gone

    def engine(self) -> Engine:
        """How the engine is started.

        Raises:
            UserError: when the Python that the user chose is not there.
        """
        return engine_of(str(slicer.app.userSettings().value(PYTHON_SETTING) or ""))

    @property
    def listed(self) -> bool:
        """Whether the engine has said which models and adapters there are, or why it cannot."""
        return len(self._listings) == 2 and not any(query and query.running for query in self._listings.values())

    def device(self) -> str:
        """The device that is chosen; `auto` where this computer has no such device."""
        chosen = str(self.parameters.get("device"))
        known = len(self.devices) > 1
        return chosen if not known or chosen in self.devices else "auto"

    def engine_problems(self) -> list[str]:
        """Why the engine cannot compute, one sentence each."""
        return self.environment_section.problems()

    def adapt_settings(self) -> AdaptSettings:
        """The settings of the next adaptation."""
        return self.adapt_section.settings()

    def run(self, task: Work) -> None:
        """Start work and keep it going."""
        task.start()
        self._pump.add(task)

    def query(
        self,
        *arguments: str,
        on_answer: Callable[[Any], None],
        on_error: Callable[[UserError], None],
        on_end: Callable[[], None] | None = None,
        **others: Any,
    ) -> Query | None:
        """Ask the engine without waiting; see `Query`. None where it cannot be asked, which `on_error` is told."""
        try:
            engine = self.engine()
        except UserError as error:
            if on_end is not None:
                on_end()
            on_error(error)
            return None
        query = Query(engine, *arguments, on_answer=on_answer, on_error=on_error, on_end=on_end, **others)
        self._queries = [*(query for query in self._queries if query.running), query]
        self.run(query)
        return query

    def reload_models(self) -> None:
        """Ask the engine for the base models."""
        self._list("models", self._models_listed, self._no_models)

    def reload_adapters(self) -> None:
        """Ask the engine for the adapters."""
        self._list("adapters", self._adapters_listed, self._no_adapters)

    def _list(self, what: str, on_answer: Callable[[Any], None], on_error: Callable[[UserError], None]) -> None:
        earlier = self._listings.get(what)
        if earlier is not None:
            earlier.cancel()  # it may be another Python's, and answer last
        self._listings[what] = self.query(what, "list", on_answer=on_answer, on_error=on_error)

    def _models_listed(self, models: list[Mapping[str, Any]]) -> None:
        self.models = models
        self.base_model_section.models_changed()
        self.models_section.models_changed()
        self.segment_section.models_changed()
        self.refresh()

    def _no_models(self, error: UserError) -> None:
        self.segment_section.models_changed()
        self._say_unlisted(self.ui.modelsMessage, error)
        self.base_model_section.say(str(error))
        self.refresh()

    def _adapters_listed(self, adapters: list[Mapping[str, Any]]) -> None:
        self.adapters = adapters
        self.adapters_section.adapters_changed()
        self.segment_section.models_changed()
        self.refresh()

    def _no_adapters(self, error: UserError) -> None:
        self.segment_section.models_changed()
        self._say_unlisted(self.ui.adaptersMessage, error)
        self.refresh()

    def _say_unlisted(self, label: qt.QLabel, error: UserError) -> None:
        """Say why there is no list, unless the notice above the tabs says it for all."""
        say(label, "" if self.engine_problems() else str(error))

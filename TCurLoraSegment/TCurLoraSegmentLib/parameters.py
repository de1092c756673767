"""What the user chose in the panel, kept in the scene's parameter node, which is saved and loaded with the scene."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import slicer

from TCurLoraSegmentLib.scene_cases import CasePair

DEFAULTS: Mapping[str, Any] = {
    "base": "",
    "name": "",
    "minutes": 15,
    "device": "auto",
    "cross_validation": True,
    "method": "compact",
    "rank": 0,
    "steps": 0,
    "folds": 0,
    "seed": 0,
    "mapping": {},
    "names": {},
    "apart": [],
    "model": "",
    "as_labelmap": False,
    "uncertainty": False,
}
"""Every value with its default; 0 in rank, steps and folds leaves the choice to the engine."""


@dataclass(frozen=True)
class CaseRow:
    """One row of the table of labeled cases; a node that is gone has an empty ID.

    Attributes:
        pair: the nodes.
        use: whether it is adapted to.
        subject: what the user calls the person; empty where the scene tells it.
    """

    pair: CasePair
    use: bool = True
    subject: str = ""


class Parameters:
    """Typed access to a `vtkMRMLScriptedModuleNode`.

    Values are stored as JSON; nodes as node references, which follow their nodes when a scene is imported and IDs
    change.

    Args:
        node: the module's parameter node.
    """

    def __init__(self, node: slicer.vtkMRMLScriptedModuleNode) -> None:
        self.node = node

    def get(self, key: str) -> Any:
        """Read a value; one that is missing or damaged gives its default."""
        default = DEFAULTS[key]
        try:
            value = json.loads(self.node.GetParameter(key))
        except ValueError:
            return default
        return value if isinstance(value, type(default)) else default

    def set(self, key: str, value: Any) -> None:
        """Store a value; storing what is there already changes nothing.

        Raises:
            KeyError: when there is no such value.
        """
        if not isinstance(value, type(DEFAULTS[key])):
            raise TypeError(f"{key} must be {type(DEFAULTS[key]).__name__}, not {type(value).__name__}")
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
        if self.node.GetParameter(key) != text:
            self.node.SetParameter(key, text)

    def get_node(self, role: str) -> slicer.vtkMRMLNode | None:
        """Read a node reference: `input`, `output`, `report_table` or `report_chart`."""
        return self.node.GetNodeReference(role)

    def set_node(self, role: str, node: slicer.vtkMRMLNode | None) -> None:
        """Store a node reference."""
        wanted = node.GetID() if node else None
        if (self.node.GetNodeReferenceID(role) or None) != wanted:
            self.node.SetNodeReferenceID(role, wanted)

    def get_nodes(self, role: str) -> list[slicer.vtkMRMLNode]:
        """Read a list of node references, without those whose nodes are gone."""
        found = (self.node.GetNthNodeReference(role, n) for n in range(self.node.GetNumberOfNodeReferences(role)))
        return [node for node in found if node is not None]

    def set_nodes(self, role: str, nodes: Sequence[slicer.vtkMRMLNode]) -> None:
        """Store a list of node references."""
        if self.get_nodes(role) == list(nodes):
            return
        self.node.RemoveNodeReferenceIDs(role)
        for node in nodes:
            self.node.AddNodeReferenceID(role, node.GetID())

    def cases(self) -> list[CaseRow]:
        """Read the rows of the table of labeled cases; a row is dropped when both its nodes are gone."""
        try:
            entries = [
                (str(entry["key"]), bool(entry["use"]), str(entry.get("subject", "")))
                for entry in json.loads(self.node.GetParameter("cases"))
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
        rows = []
        for key, use, subject in entries:
            volume, labels = (self.node.GetNodeReference(f"case.{key}.{part}") for part in ("volume", "labels"))
            if volume or labels:
                pair = CasePair(volume.GetID() if volume else "", labels.GetID() if labels else "")
                rows.append(CaseRow(pair, use, subject))
        return rows

    def set_cases(self, rows: Sequence[CaseRow]) -> None:
        """Store the rows of the table of labeled cases."""
        if self.cases() == list(rows):
            return
        changing = self.node.StartModify()
        try:
            for role in self._case_roles():
                self.node.RemoveNodeReferenceIDs(role)
            for number, row in enumerate(rows):
                self.node.SetNodeReferenceID(f"case.{number}.volume", row.pair.volume_id or None)
                self.node.SetNodeReferenceID(f"case.{number}.labels", row.pair.labels_id or None)
            entries = [{"key": str(number), "use": row.use, "subject": row.subject} for number, row in enumerate(rows)]
            self.node.SetParameter("cases", json.dumps(entries))
        finally:
            self.node.EndModify(changing)

    def _case_roles(self) -> list[str]:
        roles: list[str] = []
        self.node.GetNodeReferenceRoles(roles)
        return [role for role in roles if role.startswith("case.")]

"""What PythonQt refuses, or does otherwise than PySide, and what a module must not do to Slicer."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project_files import ENGINE, LIBRARY, MODULE_FILE, python_files, tree_of, where

# Setters, properties and getters of Qt whose value is an enumerator.
ENUM_SETTERS = {
    *("setSizePolicy", "setHorizontalPolicy", "setVerticalPolicy", "setSizeAdjustPolicy", "setFocusPolicy"),
    *("setSelectionMode", "setSelectionBehavior", "setEditTriggers", "setSectionResizeMode", "setContextMenuPolicy"),
    *("setFrameShape", "setFrameShadow", "setFrameStyle", "setAlignment", "setTextAlignment", "setCheckState"),
    *("setTextInteractionFlags", "setTextFormat", "setToolButtonStyle", "setPopupMode", "setWindowModality"),
    *("setOrientation", "setLineWrapMode", "setTextElideMode", "setFlags", "setStandardButtons", "setFileMode"),
    *("setAcceptMode", "setDefaultButton", "setIcon", "setCursor", "setWindowFlags", "setAttribute", "setRenderHint"),
    *("setHorizontalScrollBarPolicy", "setVerticalScrollBarPolicy", "setFieldGrowthPolicy", "setTimerType"),
}
ENUM_PROPERTIES = {
    *("sizePolicy", "sizeAdjustPolicy", "focusPolicy", "selectionMode", "selectionBehavior", "editTriggers"),
    *("frameShape", "frameShadow", "alignment", "textInteractionFlags", "textFormat", "toolButtonStyle", "popupMode"),
    *("orientation", "lineWrapMode", "textElideMode", "windowModality", "contextMenuPolicy", "standardButtons"),
    *("filters", "fileMode", "acceptMode", "standardIcon", "timerType", "fieldGrowthPolicy", "checkState"),
}
ENUM_GETTERS = {"checkState", "exec_", "exec", "question", "warning", "information", "critical", "state", "type", "key"}
QT_MODULES = ("qt", "ctk")


def is_qt_class(function: ast.expr) -> bool:
    """Whether a call makes a Qt object: `qt.QLabel(..)`, `ctk.ctkPathLineEdit(..)`, `slicer.qMRMLNodeComboBox(..)`."""
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return False
    module, name = function.value.id, function.attr
    return (module in QT_MODULES and name[:1] in "Qc") or (module == "slicer" and name.startswith("qMRML"))


def is_number(node: ast.expr) -> bool:
    """Whether an expression is an integer as it is written; True and False are none."""
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def keyword_arguments(node: ast.AST) -> str:
    """PythonQt ignores or refuses `qt.QLabel(text="..")`."""
    if isinstance(node, ast.Call) and is_qt_class(node.func) and node.keywords:
        return f"{ast.unparse(node.func)} takes no keyword arguments in PythonQt"
    return ""


def integer_enums(node: ast.AST) -> str:
    """An enumerator's number differs between Qt 5 and 6 or is not taken at all."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ENUM_SETTERS:
        numbers = [argument for argument in node.args if is_number(argument)]
        # Only setSectionResizeMode, setTextAlignment (of a model) and setFlags take another number first.
        if node.args and is_number(node.args[-1]) and numbers:
            return f"{node.func.attr} takes an enumerator, not {ast.unparse(node.args[-1])}"
    if isinstance(node, ast.Assign) and is_number(node.value):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr in ENUM_PROPERTIES:
                return f"{target.attr} is an enumerator, not {ast.unparse(node.value)}"
    if isinstance(node, ast.Compare) and any(is_number(side) for side in (node.left, *node.comparators)):
        for side in (node.left, *node.comparators):
            if isinstance(side, ast.Call) and isinstance(side.func, ast.Attribute) and side.func.attr in ENUM_GETTERS:
                return f"{side.func.attr}() gives an enumerator: compare it with one"
    return ""


def scoped_enums(node: ast.AST) -> str:
    """`qt.Qt.CheckState.Checked` exists in PySide 6 only; PythonQt has `qt.Qt.Checked`."""
    if not isinstance(node, ast.Attribute):
        return ""
    parts = ast.unparse(node).split(".")
    if (
        len(parts) == 4
        and parts[0] == "qt"
        and parts[1][:1] == "Q"
        and parts[2][:1].isupper()
        and parts[3][:1].isupper()
    ):
        return f"{ast.unparse(node)} has one name too many for PythonQt"
    return ""


def waiting_for_events(node: ast.AST) -> str:
    """A loop of processEvents lets the user start a second run inside the first."""
    if isinstance(node, ast.For | ast.While):
        for inside in ast.walk(node):
            if isinstance(inside, ast.Call) and ast.unparse(inside.func).endswith("processEvents"):
                return "processEvents in a loop"
    return ""


def changed_environment(node: ast.AST) -> str:
    """Slicer's own environment is everybody's."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    for target in targets:
        base = target.value if isinstance(target, ast.Subscript) else target
        if ast.unparse(base) in ("os.environ", "environ"):
            return "changes os.environ"
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name in ("os.putenv", "os.unsetenv") or name in {
            f"{base}.{method}"
            for base in ("os.environ", "environ")
            for method in ("update", "setdefault", "pop", "popitem", "clear", "__setitem__")
        }:
            return f"{name} changes os.environ"
    return ""


def shells(node: ast.AST) -> str:
    """Arguments are a list; a shell would read what a file's name says."""
    if isinstance(node, ast.Call):
        if any(keyword.arg == "shell" for keyword in node.keywords):
            return "a shell is asked for"
        if ast.unparse(node.func) in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
            return f"{ast.unparse(node.func)} goes through a shell"
        command = node.args[0] if node.args else None
        name = ast.unparse(node.func).removeprefix("subprocess.")
        is_text = isinstance(command, ast.JoinedStr) or (
            isinstance(command, ast.Constant) and isinstance(command.value, str)
        )
        if name in ("run", "Popen", "call", "check_call", "check_output") and is_text:
            return "a command must be a list"
    return ""


def own_signals(node: ast.AST) -> str:
    """A Qt signal that is defined in Python crashes Slicer."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "qt.Signal",
        "qt.pyqtSignal",
        "qt.Slot",
        "qt.Property",
    ):
        return f"{ast.unparse(node.func)} crashes Slicer"
    return ""


def own_styles(node: ast.AST) -> str:
    """Slicer has a style of its own, light and dark."""
    if isinstance(node, ast.Attribute) and node.attr in ("setStyleSheet", "styleSheet", "setStyle"):
        return f"{node.attr}: no custom styling"
    return ""


def untranslatable(node: ast.AST) -> str:
    """Translations are looked up by the text as it is written."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_" and node.args:
        argument = node.args[0]
        if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
            return f"_() takes a text as it is, not {ast.unparse(argument)[:40]}"
    return ""


def texts_as_written(node: ast.AST) -> Iterator[str]:
    """Give the texts that get into the value of an expression without being translated."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.Call):
        # `"..".format(..)` shows its own text, and `" ".join(..)` what it joins too; keys and options are not shown.
        if isinstance(node.func, ast.Attribute):
            yield from texts_as_written(node.func.value)
            if node.func.attr == "join":
                yield from (text for argument in node.args for text in texts_as_written(argument))
    elif isinstance(node, ast.FormattedValue):
        yield from texts_as_written(node.value)
    elif not isinstance(node, ast.Subscript | ast.Compare):
        yield from (text for child in ast.iter_child_nodes(node) for text in texts_as_written(child))


def untranslated_errors(node: ast.AST) -> str:
    """What a UserError says is shown to the user; only spaces between sentences need no translation."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "UserError":
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            for text in texts_as_written(argument):
                if any(character.isalpha() for character in text):
                    return f"UserError takes a text through _(), not {text[:40]!r}"
    return ""


RULES: dict[Callable[[ast.AST], str], tuple[str, ...]] = {
    keyword_arguments: ("qt.QLabel(text='x')", "ctk.ctkPathLineEdit(parent=p)", "slicer.qMRMLNodeComboBox(parent=p)"),
    integer_enums: (
        "table.setSelectionMode(0)",
        "header.setSectionResizeMode(0, 1)",
        "label.alignment = 4",
        "if item.checkState() == 2: pass",
    ),
    scoped_enums: ("box.setCheckState(qt.Qt.CheckState.Checked)",),
    waiting_for_events: (
        "while busy:\n  slicer.app.processEvents()",
        "for x in y:\n  if x: qt.QApplication.processEvents()",
    ),
    changed_environment: (
        "os.environ['A'] = 'b'",
        "del os.environ['A']",
        "os.environ.update(a='b')",
        "os.environ |= {'a': 'b'}",
        "os.putenv('A', 'b')",
    ),
    shells: (
        "subprocess.run(command, shell=True)",
        "os.system('ls')",
        "subprocess.run('ls')",
        "subprocess.Popen(f'ls {name}')",
    ),
    own_signals: ("class A(qt.QObject):\n  done = qt.Signal(str)",),
    own_styles: ("button.setStyleSheet('color: red')", "button.styleSheet = 'color: red'"),
    untranslatable: ("_(f'{name} is bad')", "_('a {b}'.format(b=b))", "_(text)"),
    untranslated_errors: (
        "raise UserError('Bad.')",
        "raise UserError(_('Bad.'), 'Do this.')",
        "raise UserError(_('Bad.'), remedy='Do this.')",
        "raise UserError(f'{name} is bad.', error.remedy)",
        "raise UserError(_('Bad.'), f'{remedy} See the log.')",
        "raise UserError('{name} is bad.'.format(name=name))",
        "raise UserError(_('Bad.') + ' It is.')",
        "raise UserError(said or 'Bad.') from error",
        "raise UserError(' '.join(['Bad.', remedy]))",
        "errors.UserError('Bad.')",
    ),
}
GOOD = """
label = qt.QLabel("x", parent)
header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
label.alignment = qt.Qt.AlignTop
table.setColumnCount(4)
layout.setStretch(0, 1)
if item.checkState() == qt.Qt.Checked: pass
environment = dict(os.environ)
environment["A"] = "b"
slicer.app.processEvents()
subprocess.run([python, "-c", code])
_("{name} is good").format(name=name)
raise UserError(_("{name} is bad: {reason}").format(name=name, reason=getattr(error, "strerror", "?")), error.remedy)
raise UserError(said["message"] or _("Bad."), f"{one} {other}") from error
raise UserError("\\n".join(f"{problem.message} {problem.remedy}" for problem in problems))
raise UserError(_("Bad here.") if place == "here" else message.format(name=name))
qt.QTimer.singleShot(0, f)
"""


def problems_of(path: Path, tree: ast.AST, rule: Callable[[ast.AST], str]) -> list[str]:
    return [f"{where(path, node)}: {said}" for node in ast.walk(tree) if (said := rule(node))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_slicers_side_keeps_the_rule(rule: Callable[[ast.AST], str]) -> None:
    files = list(python_files(MODULE_FILE, LIBRARY))
    assert len(files) > 3
    if rule in (waiting_for_events, changed_environment):
        # A test has to wait, and keeps away from the user's own adapters.
        files = [path for path in files if path.name != "self_test.py"]
    problems = [problem for path in files for problem in problems_of(path, tree_of(path), rule)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("rule", [shells, changed_environment], ids=lambda rule: rule.__name__)
def test_the_engine_keeps_the_rule(rule: Callable[[ast.AST], str]) -> None:
    # The engine is a process of its own: what it sets for itself, before torch reads it, is nobody else's.
    files = [path for path in python_files(ENGINE) if rule is shells or path.name != "__main__.py"]
    problems = [problem for path in files for problem in problems_of(path, tree_of(path), rule)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(("rule", "bad"), [(rule, bad) for rule, examples in RULES.items() for bad in examples])
def test_bad_examples_are_found(rule: Callable[[ast.AST], str], bad: str) -> None:
    assert problems_of(Path("bad.py"), ast.parse(bad), rule), f"{rule.__name__} lets pass: {bad}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_example_passes(rule: Callable[[ast.AST], str]) -> None:
    assert problems_of(Path("good.py"), ast.parse(GOOD), rule) == []

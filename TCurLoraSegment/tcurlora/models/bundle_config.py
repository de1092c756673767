"""A bundle's config files, read as data: references are resolved, and a few expressions computed; nothing is executed.

MONAI's config language has `@id` (the content at another place of the file), `$expression` (Python) and `%id` (a copy
of another place, or of another file). What is here computes the small part of it that describes a model: constants,
lists, conditions, sums and lengths. Whatever else stands there becomes `Unknown`, and only who needs it is told so.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcurlora.errors import InputError

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
LARGEST_FILE = 4 * 2**20
LONGEST_EXPRESSION = 1000
LONGEST_LIST = 4096
DEEPEST = 40
MOST_VALUES = 100_000
"""Values that may be read from one config, references followed; a few lines can refer to each other without end."""

_ID = re.compile(r"@\w+(?:(?:::|#)\w+)*")
_SEPARATOR = re.compile(r"::|#")
_FLOATS = ("float32", "float", "float16", "half", "float64", "double", "int16", "int32", "int64", "uint8")
_NAMES: dict[str, str] = {
    "monai.utils.CommonKeys.IMAGE": "image",
    "monai.utils.CommonKeys.LABEL": "label",
    "monai.utils.CommonKeys.PRED": "pred",
    **{f"{module}.{name}": name for module in ("torch", "numpy", "np") for name in _FLOATS},
}
"""Names of other packages that mean a word."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {"len": len, "list": list, "tuple": list, "int": int, "float": float}
_AS_THEY_ARE = ("torch.from_numpy", "torch.tensor", "torch.as_tensor", "numpy.array", "np.array")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


@dataclass(frozen=True)
class Unknown:
    """What stands in a config and is not computed here.

    Attributes:
        text: as it stands there.
        why: completes a sentence that begins with the text.
    """

    text: str
    why: str


@dataclass(frozen=True)
class StoredEntry:
    """An entry of a file of tensors that a config reads with `torch.load`; nothing has been read.

    Attributes:
        file: as the config names it.
        entry: its key in the file; None for the file as a whole.
    """

    file: str
    entry: str | None = None


class _CannotTell(Exception):
    def __init__(self, why: str) -> None:
        self.why = why


class BundleConfig:
    """The content of a config file with its references.

    Args:
        content: of the file.
        where: names the bundle in errors.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content = content
        self._where = where
        self._read = 0
        self._open: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def keys(self) -> list[str]:
        """The keys at the top of the file."""
        return list(self._content)

    def get(self, key: str, default: Any = None) -> Any:
        """Return what is at a key at the top of the file, with all references in it resolved.

        Components stay dictionaries with a `_target_`. What cannot be told is `Unknown`.

        Raises:
            InputError: when what would have to be read has no end.
        """
        return self._at(key, 0) if key in self._content else default

    def components(self, class_name: str) -> list[dict[str, Any]]:
        """Find the components of a class anywhere in the file, as they stand there."""
        found: list[dict[str, Any]] = []
        waiting: list[Any] = [self._content]
        while waiting:
            value = waiting.pop(0)
            if isinstance(value, dict):
                if str(value.get("_target_", "")).rpartition(".")[2] == class_name:
                    found.append(value)
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        return found

    def resolve(self, value: Any) -> Any:
        """Resolve a value as if it stood in the file."""
        return self._resolve(value, 0)

    def _at(self, place: str, depth: int) -> Any:
        place = _SEPARATOR.sub("::", place)
        if place in self._open:
            return Unknown(f"@{place}", "refers to itself")
        value: Any = self._content
        for part in place.split("::"):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return Unknown(f"@{place}", "is not in the file")
        self._open.append(place)
        try:
            return self._resolve(value, depth + 1)
        finally:
            self._open.pop()

    def _resolve(self, value: Any, depth: int) -> Any:
        self._read += 1
        if depth > DEEPEST or self._read > MOST_VALUES:
            raise InputError(
                f"The base model '{self._where}' has a config whose references do not end.",
                "Choose another bundle, or correct this one.",
                "bad_bundle",
            )
        if isinstance(value, Mapping):
            return {key: self._resolve(content, depth + 1) for key, content in value.items()}
        if isinstance(value, list):
            return [self._resolve(content, depth + 1) for content in value]
        if not isinstance(value, str):
            return value
        if value.startswith("$"):
            return self._computed(value, depth)
        if value.startswith("%"):
            place = value[1:]
            if re.fullmatch(r"\w+(?:(?:::|#)\w+)*", place):
                return self._at(place, depth)
            return Unknown(value, "is in another file")
        if _ID.fullmatch(value):
            return self._at(value[1:], depth)
        return value

    def _computed(self, text: str, depth: int) -> Any:
        if len(text) > LONGEST_EXPRESSION:
            return Unknown(f"{text[:60]}...", "is longer than any that is understood")
        places: list[str] = []

        def stand_in(found: re.Match[str]) -> str:
            places.append(found.group()[1:])
            return f" reference_{len(places) - 1} "

        source = _ID.sub(stand_in, text[1:]).strip()
        try:
            tree = ast.parse(source, mode="eval").body
            return _Expression(lambda number: self._at(places[number], depth)).value(tree)
        except _CannotTell as problem:
            return Unknown(text, problem.why)
        except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError):
            return Unknown(text, "cannot be computed")


class _Expression:
    """Computes an expression from its syntax tree; there is a method for each thing that it can do.

    Args:
        reference: the value of the reference of this number.
    """

    def __init__(self, reference: Callable[[int], Any]) -> None:
        self._reference = reference

    def value(self, node: ast.AST) -> Any:
        """Compute a node.

        Raises:
            _CannotTell: when it is none of the few that are known.
        """
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
            return node.value
        if isinstance(node, ast.List | ast.Tuple):
            return _not_too_long([self.value(item) for item in node.elts])
        if isinstance(node, ast.Name) and re.fullmatch(r"reference_\d+", node.id):
            return self._known(self._reference(int(node.id.removeprefix("reference_"))))
        if isinstance(node, ast.IfExp):
            return self.value(node.body if self._plain(node.test) else node.orelse)
        if isinstance(node, ast.BoolOp):
            result: Any = None
            for part in node.values:
                result = self._plain(part)
                if bool(result) == isinstance(node.op, ast.Or):
                    break
            return result
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self._plain(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return self._joined(node.op, self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
            values = [self._plain(part) for part in (node.left, *node.comparators)]
            return all(_OPERATORS[type(op)](a, b) for op, a, b in zip(node.ops, values[:-1], values[1:], strict=True))
        if isinstance(node, ast.Subscript):
            return self._item(self.value(node.value), self._plain(node.slice))
        if isinstance(node, ast.Call):
            return self._called(node)
        name = _dotted(node)
        if name in _NAMES:
            return _NAMES[name]
        raise _CannotTell(f"has '{ast.unparse(node)[:60]}' in it")

    def _known(self, value: Any) -> Any:
        if isinstance(value, Unknown):
            raise _CannotTell(f"needs '{value.text}', which {value.why}")
        return value

    def _plain(self, node: ast.AST) -> Any:
        value = self.value(node)
        if not isinstance(value, bool | int | float | str | list | dict | None):
            raise _CannotTell("is about more than numbers and texts")
        return value

    def _joined(self, sign: ast.AST, a: Any, b: Any) -> Any:
        kinds = {list if isinstance(v, list) else str if isinstance(v, str) else float for v in (a, b)}
        number = all(isinstance(v, bool | int | float) for v in (a, b))
        together = isinstance(sign, ast.Add) and len(kinds) == 1 and isinstance(a, list | str)
        repeated = isinstance(sign, ast.Mult) and kinds == {list, float} and any(isinstance(v, int) for v in (a, b))
        if not (number or together or repeated):
            raise _CannotTell("joins what does not belong together")
        many, times = (a, b) if isinstance(a, list) else (b, a)
        if repeated and _length(many) * times > LONGEST_LIST:
            raise _CannotTell("makes a list that is too long")
        return _not_too_long(_OPERATORS[type(sign)](a, b))

    def _item(self, value: Any, key: Any) -> Any:
        if isinstance(value, StoredEntry) and value.entry is None and isinstance(key, str):
            return StoredEntry(value.file, key)
        if isinstance(value, list | str) and isinstance(key, int):
            return self._known(value[key])
        if isinstance(value, dict) and isinstance(key, str):
            return self._known(value[key])
        raise _CannotTell("takes a part of what has none")

    def _called(self, node: ast.Call) -> Any:
        name = _dotted(node.func)
        options = {word.arg for word in node.keywords}
        if len(node.args) == 1 and name in _FUNCTIONS and not options:
            value = self._plain(node.args[0])
            if name == "int" and isinstance(value, str):
                raise _CannotTell("makes a number of a text")
            return _FUNCTIONS[name](value)
        if len(node.args) == 1 and name in _AS_THEY_ARE and options <= {"dtype"}:
            return self.value(node.args[0])
        if len(node.args) == 1 and name == "torch.load" and options <= {"map_location", "weights_only"}:
            file = self._plain(node.args[0])
            if isinstance(file, str):
                return StoredEntry(file)
        raise _CannotTell(f"calls '{ast.unparse(node.func)[:60]}'")


def _length(value: Any) -> int:
    """Count what is in a value, and in what is in it."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(_length(part) for part in parts)


def _not_too_long(value: Any) -> Any:
    if _length(value) > LONGEST_LIST:
        raise _CannotTell("makes a list that is too long")
    return value


def _dotted(node: ast.AST) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def first_unknown(value: Any) -> Unknown | None:
    """Find something in a resolved value that could not be told."""
    if isinstance(value, Unknown):
        return value
    if isinstance(value, StoredEntry):
        return Unknown(value.file, "is a file that is read only for the architecture of a network")
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next((found for part in parts if (found := first_unknown(part)) is not None), None)


def has_component(value: Any) -> bool:
    """Return whether there is anything in a resolved value that MONAI would instantiate."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(has_component(part) for part in value.values())
    return isinstance(value, list) and any(has_component(part) for part in value)


def has_expression(value: Any) -> bool:
    """Return whether MONAI's config parser would execute or resolve anything in a value."""
    if isinstance(value, str):
        return value.startswith(("$", "@", "%"))
    if isinstance(value, dict):
        return "_target_" in value or any(has_expression(v) for v in value.values())
    return isinstance(value, list) and any(has_expression(v) for v in value)


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file, JSON or YAML; aliases of YAML, which can grow without bounds, are refused.

    Raises:
        InputError: when it cannot be read, or holds no dictionary.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("no config is that large")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _from_yaml(text)
    except (OSError, ValueError, RecursionError, TypeError, LookupError) as error:
        raise InputError(
            f"'{path.parent.parent.name}' is not a base model: its configs/{path.name} cannot be read.",
            "Choose a MONAI bundle folder with configs/metadata.json and configs/inference.json (or .yaml).",
            "bad_bundle",
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"The base model '{path.parent.parent.name}' has no object in configs/{path.name}.",
            "Choose another bundle, or correct this one.",
            "bad_bundle",
        )
    return content


def _from_yaml(text: str) -> Any:
    """Read YAML as data.

    Raises:
        ValueError: when it is not YAML, or has aliases.
    """
    import yaml  # listing models must work in a Python that has nothing, and most bundles have no YAML

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

    try:
        return _texts_as_keys(yaml.load(text, Plain))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _texts_as_keys(value: Any) -> Any:
    """Make keys of YAML what those of JSON are."""
    if isinstance(value, dict):
        return {str(key): _texts_as_keys(content) for key, content in value.items()}
    return [_texts_as_keys(content) for content in value] if isinstance(value, list) else value

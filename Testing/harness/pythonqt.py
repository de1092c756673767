"""Wrappers around PySide6 objects that behave as those of PythonQt, through which Slicer's Python sees Qt.

What PythonQt refuses is refused here too, and with more words. A property is a value and not a function, the
setter of a property stays a function, signals are connected by their signature, an enum is a kind of int whose
values belong to the class, keyword arguments are unknown, lists come back as tuples.
"""
# ruff: noqa: N802

from __future__ import annotations

import enum
import functools
import os
import traceback
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import shiboken6
from PySide6 import QtCore

from . import dialogs, qt_facts

# Exceptions that were raised in slots and event handlers, where Qt swallows them; the panel's tests look here.
errors: list[str] = []

_classes: dict[type, type] = {}
_wrappers: weakref.WeakValueDictionary[int, Wrapper] = weakref.WeakValueDictionary()
_connections: dict[int, list[_Connection]] = {}


def note_error() -> None:
    """Keep the exception that is being handled, so that a test can fail by it, and print it as PythonQt does."""
    errors.append(traceback.format_exc())
    traceback.print_exc()


class EnumValue(int):
    """A value of a Qt enum: an int to read, but Qt takes only such values and no plain integers."""

    native: type[enum.Enum]

    def __new__(cls, value: int, native: type[enum.Enum]) -> EnumValue:
        self = super().__new__(cls, value)
        self.native = native
        return self

    def __or__(self, other: int) -> Any:
        return _combined(self, other, int.__or__)

    def __and__(self, other: int) -> Any:
        return _combined(self, other, int.__and__)

    def __repr__(self) -> str:
        return f"{self.native.__qualname__}({int(self)})"

    __str__ = __repr__


def _combined(one: EnumValue, other: int, operation: Callable[[int, int], int]) -> int:
    result = operation(int(one), int(other))
    return EnumValue(result, one.native) if getattr(other, "native", None) is one.native else result


class EnumType:
    """The type of an enum, as a class offers it; its values are attributes of the class, not of the type."""

    def __init__(self, native: type[enum.Enum]) -> None:
        self._native = native

    def __call__(self, value: int) -> EnumValue:
        return EnumValue(int(value), self._native)


class _Meta(type):
    """What can be had from a class: constructor, enum values, static functions, functions without their object."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if keywords and "_native" in vars(cls):
            raise TypeError(f"PythonQt takes no keyword arguments: {cls.__name__}({', '.join(keywords)}=...)")
        return super().__call__(*args, **keywords)

    def __getattr__(cls, name: str) -> Any:
        native = type.__getattribute__(cls, "_native")
        if not name.startswith("_"):
            value = _enum_member(native, name)
            if value is not None:
                return value
            found = _function_of(native, name)
            if found is not None:
                return _Function(found, None, native, name)
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")

    def __setattr__(cls, name: str, value: Any) -> None:
        if "_native" in vars(cls) and not name.startswith("__"):
            raise AttributeError(f"the class {cls.__name__} of Qt can not be changed")
        super().__setattr__(name, value)


class Wrapper(metaclass=_Meta):
    """A Qt object as Python in Slicer holds it."""

    _native: Any = None

    def __init__(self, *args: Any) -> None:
        cls = type(self)
        native_class = cls._native if "_native" in vars(cls) else _shell_class(cls)
        if native_class.__name__ in qt_facts.NOT_CONSTRUCTED:
            raise TypeError(f"{native_class.__name__} can not be made by Python")
        native = native_class(*(unwrap(argument) for argument in args))
        _bind(self, native)
        if "_native" not in vars(cls):
            native._python_side = self

    def __getattr__(self, name: str) -> Any:
        native = object.__getattribute__(self, "_native")
        if name.startswith("_") or native is None:
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        _check_alive(native, name)
        if isinstance(native, QtCore.QObject):
            key = _property(native, name)
            if key is not None:
                return _read(native, key)
            signature = _first_signal(native, name)
            if signature:
                return Signal(self, name, signature)
            if name in _dynamic(native):
                return wrap(native.property(name))
        found = _function_of(type(native), name)
        if found is not None:
            return _Function(found, native, type(native), name)
        value = _enum_member(type(native), name)
        if value is not None:
            return value
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        native = object.__getattribute__(self, "_native")
        label = f"{type(self).__name__} object"
        if native is not None and not name.startswith("_"):
            _check_alive(native, name)
            if isinstance(native, QtCore.QObject):
                key = _property(native, name)
                if key is not None:
                    _write(native, key, value)
                    return
                if _first_signal(native, name):
                    raise AttributeError(f"Signal '{name}' can not be overwritten on {label}")
                if name in _dynamic(native):
                    native.setProperty(name, unwrap(value))
                    return
            if _function_of(type(native), name) is not None:
                raise AttributeError(f"Slot '{name}' can not be overwritten on {label}")
            if _enum_member(type(native), name) is not None:
                raise AttributeError(f"EnumValue '{name}' can not be overwritten on {label}")
        if "_native" in vars(type(self)):
            raise AttributeError(
                f"'{name}' does not exist on {label} and creating new attributes on C++ objects is not allowed"
            )
        object.__setattr__(self, name, value)

    def __bool__(self) -> bool:
        return bool(shiboken6.isValid(self._native))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wrapper):
            return NotImplemented
        if isinstance(self._native, QtCore.QObject):
            return _address(self._native) == _address(other._native)
        return bool(self._native == other._native)

    def __hash__(self) -> int:
        return _address(self._native) if isinstance(self._native, QtCore.QObject) else hash(self._native)

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({type(self._native).__name__} at: {id(self._native):#x})"

    def className(self) -> str:
        return self._native.metaObject().className()

    def connect(self, signal: str, receiver: Any, slot: str | None = None) -> bool:
        """Call a function, or another object's slot, when a signal of this signature is emitted."""
        if not isinstance(signal, str):
            raise TypeError("connect takes the signal's signature, such as 'clicked(bool)'")
        if slot is not None:
            receiver = _slot_caller(receiver, slot)
        if not callable(receiver):
            raise TypeError(f"{receiver!r} can not be called")
        _connect(self._native, _signature(self._native, signal), receiver)
        return True

    def disconnect(self, signal: str, receiver: Any = None, slot: str | None = None) -> bool:
        return _disconnect(self._native, _signature(self._native, signal), receiver)

    def findChild(self, kind: Any, name: str = "") -> Any:
        return next(iter(self.findChildren(kind, name)), None)

    def findChildren(self, kind: Any, name: str = "") -> tuple[Any, ...]:
        class_name = kind if isinstance(kind, str) else kind._native.__name__
        found = self._native.findChildren(QtCore.QObject)
        return tuple(
            wrap(child) for child in found if child.inherits(class_name) and (not name or child.objectName() == name)
        )


class Signal:
    """A signal of an object, as `button.clicked`."""

    def __init__(self, owner: Wrapper, name: str, signature: str) -> None:
        self._owner = owner
        self._name = name
        self._signature = signature

    def connect(self, receiver: Any, slot: str | None = None) -> bool:
        return self._owner.connect(self._signature, receiver, slot)

    def disconnect(self, receiver: Any = None) -> bool:
        return self._owner.disconnect(self._signature, receiver)

    def emit(self, *args: Any) -> None:
        signal = getattr(self._owner._native, self._name)
        types_ = self._signature[self._signature.index("(") + 1 : -1]
        (signal[types_] if types_ else signal).emit(*(unwrap(one) for one in args))


class _Function:
    """A function of Qt, bound to an object or not."""

    def __init__(self, function: Any, native: Any, native_class: type, name: str) -> None:
        self._function = function
        self._bound = native
        self._class = native_class
        self.__name__ = name

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if keywords:
            raise TypeError(f"PythonQt takes no keyword arguments: {self.__name__}({', '.join(keywords)}=...)")
        if self._bound is not None:
            _check_alive(self._bound, self.__name__)
            _check_setter(self._bound, self.__name__, args)
        answer = dialogs.instead_of(self._bound, self._class, self.__name__)
        if answer is not None:
            target = [wrap(self._bound)] if self._bound is not None else []
            return answer(*target, *args)
        function = self._function if self._bound is None else getattr(self._bound, self.__name__)
        return wrap(function(*(_argument(argument) for argument in args)))

    def __repr__(self) -> str:
        return f"<built-in method {self.__name__} of {self._class.__name__}>"


class _Connection:
    def __init__(self, signature: str, receiver: Any, function: Any) -> None:
        self.signature = signature
        self.receiver = receiver
        self.function = function


def class_for(native: type) -> type:
    """Give the wrapper's class for a class of PySide6; its bases mirror those of Qt."""
    if native not in _classes:
        bases = tuple(class_for(base) for base in native.__bases__ if issubclass(base, shiboken6.Object))
        bases = tuple(base for base in bases if base is not Wrapper) or (Wrapper,)
        _classes[native] = _Meta(native.__name__, bases, {"_native": native, "__module__": "qt"})
    return _classes[native]


_classes[shiboken6.Object] = Wrapper


def wrap(value: Any) -> Any:
    """Turn what Qt gives into what PythonQt gives."""
    if isinstance(value, enum.Enum):
        return EnumValue(value.value, type(value))
    if isinstance(value, (list, tuple)):
        return tuple(wrap(one) for one in value)
    if isinstance(value, dict):
        return {key: wrap(one) for key, one in value.items()}
    if not isinstance(value, shiboken6.Object):
        return value
    python_side = getattr(value, "_python_side", None)
    if python_side is not None:
        return python_side
    known = _wrappers.get(id(value))
    if known is not None and known._native is value:
        return known
    wrapper = object.__new__(class_for(_exposed_class(type(value))))
    _bind(wrapper, value)
    return wrapper


def unwrap(value: Any) -> Any:
    """Turn what Python gives into what Qt takes, and refuse what PythonQt could not convert."""
    if isinstance(value, Wrapper):
        return value._native
    if isinstance(value, EnumValue):
        return value.native(int(value))
    if isinstance(value, (list, tuple)):
        return [unwrap(one) for one in value]
    if isinstance(value, (os.PathLike, np.generic)) and not isinstance(value, (float, str)):
        raise TypeError(f"Qt can not take a {type(value).__name__}: {value!r}")
    return value


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call a Python function from Qt: its exception is noted, as Qt itself would drop it."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception:
            note_error()
            return None

    return call


def _argument(value: Any) -> Any:
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return guarded(value)
    if isinstance(value, _Function):
        return lambda *args: value(*args)
    return unwrap(value)


def _bind(wrapper: Wrapper, native: Any) -> None:
    object.__setattr__(wrapper, "_native", native)
    if isinstance(native, QtCore.QObject):
        _wrappers[id(native)] = wrapper


def _exposed_class(native: type) -> type:
    """Give the class that shows: PySide6's own or a stand-in's, not the shell of a class written in Python."""
    return next(cls for cls in native.__mro__ if "_shell_of" not in vars(cls))


def _shell_class(cls: type) -> type:
    """Make the Qt class behind a class that was derived in Python: overridden functions reach Python."""
    native = cls._native
    overridden = {
        name
        for base in cls.__mro__
        if "_native" not in vars(base) and base is not object
        for name, value in vars(base).items()
        if isinstance(value, types.FunctionType) and not name.startswith("_") and callable(getattr(native, name, None))
    }

    def override(name: str) -> Callable[..., Any]:
        def call(shell: Any, *args: Any) -> Any:
            python_side = getattr(shell, "_python_side", None)
            if python_side is None:  # While it is being made.
                return getattr(native, name)(shell, *args)
            try:
                return unwrap(getattr(python_side, name)(*(wrap(one) for one in args)))
            except Exception:
                note_error()
                return None

        return call

    contents: dict[str, Any] = {name: override(name) for name in overridden}
    contents["_shell_of"] = cls
    return types.new_class(cls.__name__, (native,), {}, lambda namespace: namespace.update(contents))


def _check_alive(native: Any, name: str) -> None:
    if not shiboken6.isValid(native):
        raise ValueError(f"Trying to use '{name}' of a destroyed {type(native).__name__} object")


def _address(native: Any) -> int:
    return int(shiboken6.getCppPointer(native)[0])


def _capital(name: str) -> str:
    return name[0].upper() + name[1:]


# Properties


def _property(native: Any, name: str) -> str | None:
    """Give the name of the property that an attribute means, or None."""
    meta = native.metaObject()
    if meta.indexOfProperty(name) < 0:
        if name != "name":
            return None
        name = "objectName"
    if (meta.className(), name) in qt_facts.NO_PROPERTIES or name in qt_facts.NEW_PROPERTIES:
        return None
    return name


def _dynamic(native: Any) -> list[str]:
    return [bytes(name).decode() for name in native.dynamicPropertyNames()]


def _read(native: Any, name: str) -> Any:
    declared = getattr(type(native), name, None)
    if isinstance(declared, QtCore.Property):
        return wrap(getattr(native, name))
    for getter in (name, f"is{_capital(name)}", f"has{_capital(name)}"):
        if callable(getattr(native, getter, None)):
            return wrap(getattr(native, getter)())
    return wrap(native.property(name))


def _write(native: Any, name: str, value: Any) -> None:
    meta = native.metaObject()
    info = meta.property(meta.indexOfProperty(name))
    if not info.isWritable():
        raise AttributeError(f"Property '{name}' of {type(native).__name__} object is not writable")
    if not _accepts(native, name, info, value):
        raise AttributeError(
            f"Property '{name}' of type '{info.typeName()}' does not accept an object of type "
            f"{type(value).__name__} ({value!r})"
        )
    if isinstance(getattr(type(native), name, None), QtCore.Property):
        setattr(native, name, unwrap(value))
    else:
        getattr(native, {"pos": "move", "size": "resize"}.get(name, f"set{_capital(name)}"))(unwrap(value))


def _accepts(native: Any, name: str, info: Any, value: Any) -> bool:
    kind = info.typeName()
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "QString":
        return isinstance(value, str)
    if kind in ("int", "uint"):
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "double":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "QStringList":
        return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    if info.isEnumType():
        current = _read(native, name)
        return isinstance(value, EnumValue) and (not isinstance(current, EnumValue) or value.native is current.native)
    return True


def _check_setter(native: Any, name: str, args: tuple[Any, ...]) -> None:
    """Hold `setText(x)` to what `text = x` takes, where PySide6 is more generous than PythonQt."""
    if not (isinstance(native, QtCore.QObject) and name.startswith("set") and len(args) == 1 and len(name) > 3):
        return
    meta = native.metaObject()
    index = meta.indexOfProperty(name[3].lower() + name[4:])
    if index < 0:
        return
    info = meta.property(index)
    if info.typeName() in ("bool", "QString", "int", "double") and not _accepts(native, info.name(), info, args[0]):
        raise ValueError(f"Could not find matching overload for given arguments: {name}({args[0]!r})")


# Functions and enums


def _function_of(native: type, name: str) -> Any:
    """Find a public function of a Qt class that PythonQt offers too."""
    if name in ("exec", "print"):  # Written with the underscore, which every version takes.
        return None
    if not qt_facts.is_offered(native, name):
        return None
    for cls in native.__mro__:
        if cls is shiboken6.Object or cls is object:
            return None
        if name in vars(cls):
            found = vars(cls)[name]
            if isinstance(found, (enum.EnumMeta, QtCore.Property, QtCore.Signal, type)) or not callable(
                getattr(native, name)
            ):
                return None
            return found.__get__(None, native) if isinstance(found, (staticmethod, classmethod)) else found
    return None


@functools.cache
def _enums(native: type) -> dict[str, Any]:
    """Collect the values and the types of all enums of a class."""
    found: dict[str, Any] = {}
    for cls in reversed(native.__mro__):
        for name, kind in vars(cls).items():
            if isinstance(kind, enum.EnumMeta):
                found[name] = EnumType(kind)
                for key, member in kind.__members__.items():
                    if isinstance(member.value, int):
                        found[key.rstrip("_")] = EnumValue(member.value, kind)
    return found


def _enum_member(native: type, name: str) -> Any:
    return _enums(native).get(name)


# Signals


def _signals(native: Any, name: str) -> list[str]:
    meta = native.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return [
        bytes(method.methodSignature()).decode()
        for method in methods
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal and bytes(method.name()).decode() == name
    ]


def _first_signal(native: Any, name: str) -> str:
    found = _signals(native, name)
    return found[0] if found and name not in qt_facts.NEW_SIGNALS else ""


def _signature(native: Any, text: str) -> str:
    """Check a signal's signature; in Slicer a wrong one connects nothing and says nothing."""
    normal = bytes(QtCore.QMetaObject.normalizedSignature(text)).decode()
    normal = qt_facts.VTK_POINTER.sub("PyObject", normal)
    name = normal.split("(")[0]
    if native.metaObject().indexOfSignal(normal) < 0 or name in qt_facts.NEW_SIGNALS:
        known = ", ".join(_signals(native, name)) or "none of this name"
        raise ValueError(f"{type(native).__name__} has no signal {text}; it has {known}")
    return normal


def _slot_caller(receiver: Wrapper, slot: str) -> Callable[..., Any]:
    name, _, types_ = slot.partition("(")
    count = 0 if types_ in (")", "") else types_.count(",") + 1
    return lambda *args: getattr(receiver, name)(*args[:count])


def _taken(receiver: Any) -> int | None:
    """Count the arguments that PythonQt passes to a function: all that it names; None means all there are."""
    function, first = receiver, 0
    if isinstance(receiver, types.MethodType):
        function, first = receiver.__func__, 1
    if not isinstance(function, types.FunctionType) or function.__code__.co_flags & 0x04:
        return None
    return function.__code__.co_argcount - first


def _connect(native: Any, signature: str, receiver: Any) -> None:
    count = _taken(receiver)

    def call(*args: Any) -> None:
        try:
            receiver(*(wrap(one) for one in args[: len(args) if count is None else count]))
        except Exception:
            note_error()

    if not QtCore.QObject.connect(native, QtCore.SIGNAL(signature), call):
        raise ValueError(f"{signature} of {type(native).__name__} could not be connected")
    address = _address(native)
    if address not in _connections:
        _connections[address] = []
        native.destroyed.connect(lambda *_: _connections.pop(address, None))
    _connections[address].append(_Connection(signature, receiver, call))


def _disconnect(native: Any, signature: str, receiver: Any) -> bool:
    known = _connections.get(_address(native), [])
    ended = [one for one in known if one.signature == signature and (receiver is None or one.receiver == receiver)]
    for one in ended:
        QtCore.QObject.disconnect(native, QtCore.SIGNAL(signature), one.function)
        known.remove(one)
    return bool(ended)

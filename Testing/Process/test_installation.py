"""Installing: decided from what the doctor says, done only after consent, with real pip where pip decides."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from TCurLoraSegmentLib import installation
from TCurLoraSegmentLib.engine import ENGINE_MAIN, Engine
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.installation import (
    MINIMUM_VERSIONS,
    InstallPlan,
    Tools,
    install,
    plan_installation,
    reason,
    remedy,
)

OWN = Engine(Path("/opt/Slicer/bin/PythonSlicer"), own=True)
OTHER = Engine(Path("/home/ü/venv/bin/python"), own=False)
WHOLE = {
    "Python": "3.12.10",
    "torch": "2.9.0+cu128",
    "monai": "1.6.0",
    "SimpleITK": "2.5.0",
    "numpy": "2.0.1",
    "scipy": "1.14.1",
    "safetensors": "0.6.2",
    "einops": "0.8.1",
    "filelock": "3.20.0",
    "pydicom": "3.0.1",
    "PyYAML": "6.0.2",
    "device cpu": "8 threads",
}


def report(broken: dict[str, str] | None = None, **values: str | None) -> dict[str, Any]:
    """What the doctor says; None for what is missing."""
    found: dict[str, str | None] = {**WHOLE, **values}
    items = [
        {"name": name, "value": value or "missing", "ok": value is not None, "remedy": "" if value else "Install it."}
        for name, value in found.items()
    ]
    items += [{"name": n, "value": v, "ok": False, "remedy": "Mend it"} for n, v in (broken or {}).items()]
    return {"ok": all(item["ok"] for item in items), "items": items}


def plan(broken: dict[str, str] | None = None, **values: str | None) -> InstallPlan:
    return plan_installation(report(broken, **values), OWN)


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{name}/__init__.py", f"__version__ = '{version}'\n")
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


class Recorder:
    """Stands in for Slicer's functions."""

    def __init__(self, torch: object | None = object()) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.constraints = ""
        self._torch = torch

    def pip(self, requirements: Sequence[str], constraints: Path) -> None:
        self.calls.append(("pip", *requirements))
        self.constraints = constraints.read_text(encoding="utf-8")

    def torch(self, version: str) -> object | None:
        self.calls.append(("torch", version))
        if isinstance(self._torch, Exception):
            raise self._torch
        return self._torch

    @property
    def tools(self) -> Tools:
        return Tools(self.pip, self.torch)


class PlanTest(unittest.TestCase):
    def test_nothing_to_do(self) -> None:
        made = plan()
        self.assertTrue(made.complete)
        self.assertFalse(made.installable)
        self.assertEqual(made.words(), "")

    def test_missing_and_old_packages_are_named_with_what_is_downloaded(self) -> None:
        made = plan(torch=None, monai="1.3.2", einops=None)
        self.assertEqual(made.missing, ("torch", "monai", "einops"))
        self.assertEqual(made.requirements, ("torch>=2.8", "monai>=1.6", "einops>=0.7"))
        self.assertTrue(made.installable)
        words = made.words()
        for part in ("torch>=2.8, monai>=1.6, einops>=0.7", "pytorch.org", "3 GB", "monai, einops from pypi.org"):
            self.assertIn(part, words)
        self.assertIn("numpy 2.0.1 stays as installed", words)
        self.assertIn("None of your data is sent", words)
        self.assertIn("Nothing is downloaded", made.words(Path("/räder")))

    def test_versions_are_compared_by_number(self) -> None:
        for version, missing in (("1.10.0", ()), ("1.6.0", ()), ("1.6.dev3", ()), ("1.5.99", ("monai",)), ("2", ())):
            self.assertEqual(plan(monai=version).missing, missing, version)
        self.assertTrue(plan(SimpleITK="of unknown version", numpy="of unknown version").complete)

    def test_what_belongs_to_slicer_is_never_replaced(self) -> None:
        for name in ("numpy", "SimpleITK", "torch"):
            made = plan(monai=None, **{name: "0.9"})
            self.assertFalse(made.installable)
            self.assertEqual(made.missing, ("monai",))
            self.assertIn(f"{name} 0.9 is too old", made.words())

    def test_torch_that_does_not_start_is_told_with_what_to_do(self) -> None:
        made = plan({"device": "torch does not start: DLL load failed while importing _C"})
        self.assertFalse(made.complete or made.installable)
        for part in ("DLL load failed", "Visual C++", "PyTorch Utils", "Restart Slicer"):
            self.assertIn(part, made.words())
        made = plan({"device": "torch does not start: No module named 'torch'"}, torch=None)
        self.assertTrue(made.installable, "a torch that is missing is simply installed")
        self.assertFalse(plan({"einops": "0.8, without its files"}).installable)

    def test_intel_mac_is_told_that_there_is_no_torch_for_it(self) -> None:
        with patch("sys.platform", "darwin"), patch("platform.machine", return_value="x86_64"):
            for torch in (None, "2.2.2"):
                made = plan(torch=torch, einops=None)
                self.assertFalse(made.installable)
                self.assertEqual(made.missing, ("einops",))
                self.assertIn("no PyTorch 2.8 for Intel Macs", made.words())
            self.assertTrue(plan(torch="2.9.0").complete)
            other = plan_installation(report(torch=None), OTHER)
            self.assertEqual(other.missing, ("torch",))

    def test_old_python_cannot_be_helped(self) -> None:
        found = report()
        found["items"][0].update(ok=False, value="3.9.10", remedy="Install Python 3.10 or newer.")
        made = plan_installation(found, OWN)
        self.assertFalse(made.complete or made.installable)
        self.assertIn("Python 3.9.10 is too old. Install Python 3.10 or newer.", made.words())

    def test_troubles_that_no_package_cures_are_not_its_business(self) -> None:
        self.assertTrue(plan({"memory": "1.0 GiB", "base models": "none"}).complete)

    def test_other_python_is_left_alone(self) -> None:
        made = plan_installation(report(monai=None, numpy="1.20"), OTHER)
        self.assertEqual(made.missing, ("monai", "numpy"))
        self.assertFalse(made.installable)
        self.assertIn(f'"{OTHER.python}" -m pip install "monai>=1.6" "numpy>=1.26"', made.words())
        recorder = Recorder()
        with self.assertRaisesRegex(UserError, "not modified"):
            install(made, lambda _: True, tools=recorder.tools)
        self.assertEqual(recorder.calls, [])

    def test_bounds_are_those_of_the_project(self) -> None:
        from tcurlora.cli.doctor import PACKAGES

        self.assertEqual(set(MINIMUM_VERSIONS), set(PACKAGES))
        project = ENGINE_MAIN.parents[2] / "pyproject.toml"
        if not project.is_file():
            self.skipTest("an installed extension has no pyproject.toml")
        listed = re.search(r"^dependencies = \[(.*?)^\]", project.read_text(encoding="utf-8"), re.M | re.S)
        assert listed is not None
        self.assertEqual(MINIMUM_VERSIONS, dict(re.findall(r'"([\w-]+)>=([\d.]+)"', listed.group(1))))


class InstallTest(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory(prefix="Räder 車輪 ")
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)
        self.wheels = self.place / "ein Ordner"
        self.wheels.mkdir()
        self.target = self.place / "ziel"

    def real_pip(self, requirements: Sequence[str], constraints: Path) -> None:
        """pip as Slicer runs it: output printed line by line, and an exception that says the exit code only."""
        command = [sys.executable, "-m", "pip", "install", *requirements, "-c", str(constraints)]
        command += ["--target", str(self.target), "--no-cache-dir", "--retries", "0", "--timeout", "2"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        for line in done.stdout.splitlines():
            print(line)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, "pip install")

    def installed(self) -> set[str]:
        return {path.name for path in self.target.glob("*.dist-info")} if self.target.exists() else set()

    def test_nothing_happens_without_consent(self) -> None:
        recorder, asked = Recorder(), []
        made = plan(monai=None)
        self.assertFalse(install(made, lambda text: bool(asked.append(text)), tools=recorder.tools))
        self.assertEqual((asked, recorder.calls), ([made.words()], []))
        self.assertTrue(install(plan(), self.fail, tools=recorder.tools))

    def test_torch_comes_by_its_extension_and_then_stays(self) -> None:
        recorder = Recorder()
        versions = patch.object(installation.importlib.metadata, "version", lambda name: "2.9.1+cpu")
        with versions:
            self.assertTrue(install(plan(torch=None, monai=None), lambda _: True, tools=recorder.tools))
        self.assertEqual(recorder.calls, [("torch", ">=2.8"), ("pip", "monai>=1.6")])
        self.assertEqual(recorder.constraints.splitlines(), ["numpy==2.0.1", "torch==2.9.1+cpu", "--only-binary :all:"])

    def test_torch_declined_in_the_extensions_own_question_ends_it(self) -> None:
        recorder = Recorder(torch=None)
        self.assertFalse(install(plan(torch=None, monai=None), lambda _: True, tools=recorder.tools))
        self.assertEqual(recorder.calls, [("torch", ">=2.8")])

    def test_extension_that_stumbles_over_half_a_torch_is_put_in_words(self) -> None:
        recorder = Recorder(torch=TypeError("'NoneType' object is not iterable"))
        with self.assertRaises(UserError) as caught:
            install(plan(torch=None), lambda _: True, tools=recorder.tools)
        self.assertIn("'NoneType' object is not iterable", str(caught.exception))
        self.assertIn("uninstall PyTorch in the module PyTorch Utils", str(caught.exception))

    def test_pip_keeps_numpy_and_installs_from_a_folder_without_a_network(self) -> None:
        wheel(self.wheels, "monai", "1.6.0", "numpy")
        for version in ("2.0.1", "9.0.0"):
            wheel(self.wheels, "numpy", version)
        made = plan(monai=None, torch="2.9.0")
        self.assertTrue(install(made, lambda _: True, self.wheels, Tools(self.real_pip, self.fail)))
        self.assertEqual(self.installed(), {"monai-1.6.0.dist-info", "numpy-2.0.1.dist-info"})

    def test_torch_may_come_from_the_folder_too(self) -> None:
        wheel(self.wheels, "torch", "2.9.1")
        self.assertTrue(install(plan(torch=None), lambda _: True, self.wheels, Tools(self.real_pip, self.fail)))
        self.assertEqual(self.installed(), {"torch-2.9.1.dist-info"})

    def test_folder_that_lacks_something_is_refused_before_anything_is_asked(self) -> None:
        wheel(self.wheels, "monai", "1.6.0")
        with self.assertRaisesRegex(UserError, r"no wheel of einops.*\n?.*pip download"):
            install(plan(monai=None, einops=None), self.fail, self.wheels, Recorder().tools)
        with self.assertRaisesRegex(UserError, "cannot be read"):
            install(plan(monai=None), self.fail, self.place / "fehlt", Recorder().tools)

    def test_conflict_is_told_with_pips_own_reason(self) -> None:
        wheel(self.wheels, "monai", "1.6.0", "numpy>=3")
        for version in ("2.0.1", "9.0.0"):
            wheel(self.wheels, "numpy", version)
        with self.assertRaises(UserError) as caught:
            install(plan(monai=None), lambda _: True, self.wheels, Tools(self.real_pip, self.fail))
        self.assertIn("monai>=1.6 could not be installed", caught.exception.message)
        self.assertRegex(caught.exception.message, "conflict|ResolutionImpossible")
        self.assertNotIn("exit status", str(caught.exception))
        self.assertIn("folder of wheels", caught.exception.remedy)
        self.assertEqual(self.installed(), set())

    def test_nothing_is_compiled(self) -> None:
        with tarfile.open(self.wheels / "einops-0.8.tar.gz", "w:gz") as archive:
            source = self.place / "setup.py"
            source.write_text("raise SystemExit('code of a stranger runs')")
            archive.add(source, "einops-0.8/setup.py")
        wheel(self.wheels, "einops", "0.6")
        with self.assertRaises(UserError) as caught:
            install(plan(einops=None), lambda _: True, self.wheels, Tools(self.real_pip, self.fail))
        self.assertIn("No matching distribution found for einops>=0.7", caught.exception.message)

    def test_output_reaches_the_console_as_well(self) -> None:
        import contextlib
        import io

        console = io.StringIO()

        def pip(_: Sequence[str], __: Path) -> None:
            print("half", end="")
            print(" a line", flush=True)
            raise RuntimeError("boom")

        with contextlib.redirect_stdout(console), self.assertRaisesRegex(UserError, "half a line"):
            install(plan(monai=None), lambda _: True, tools=Tools(pip, self.fail))
        self.assertEqual(console.getvalue(), "half a line\n")

    def test_without_any_output_the_exception_speaks(self) -> None:
        def pip(_: Sequence[str], __: Path) -> None:
            raise RuntimeError("PythonSlicer executable not found")

        with self.assertRaisesRegex(UserError, "PythonSlicer executable not found"):
            install(plan(monai=None), lambda _: True, tools=Tools(pip, self.fail))


class SlicersFunctionsTest(unittest.TestCase):
    """What Slicer's functions are called with, in newer and in older Slicers."""

    def modules(self, **modules: Any) -> Any:
        return patch.dict(sys.modules, {name.replace("__", "."): module for name, module in modules.items()})

    def run_with(self, **modules: Any) -> None:
        with self.modules(**modules):
            self.assertTrue(install(plan(monai=None, torch=None), lambda _: True))

    def test_newer_and_older_slicer(self) -> None:
        calls: list[Any] = []

        class Logic:
            def installTorch(self, **options: Any) -> object:  # noqa: N802
                calls.append(("torch", options))
                return object()

        def pip_ensure(requirements: list[str], constraints: Any = None, prompt_install: bool = True,
                       requester: str | None = None) -> None:  # fmt: skip
            calls.append(("ensure", requirements, Path(constraints).is_file(), prompt_install))

        def pip_install(requirements: list[str]) -> None:
            calls.append(("install", requirements[:-1], Path(requirements[-1]).is_file()))

        slicer = types.ModuleType("slicer")
        slicer.util = types.SimpleNamespace(pip_install=pip_install)  # type: ignore[attr-defined]
        packaging = types.ModuleType("slicer.packaging")
        packaging.pip_ensure = pip_ensure  # type: ignore[attr-defined]
        utils = types.ModuleType("PyTorchUtils")
        utils.PyTorchUtilsLogic = Logic  # type: ignore[attr-defined]
        self.run_with(slicer=slicer, slicer__packaging=packaging, PyTorchUtils=utils)
        self.run_with(slicer=slicer, slicer__packaging=None, PyTorchUtils=utils)
        torch = ("torch", {"askConfirmation": True, "torchVersionRequirement": ">=2.8"})
        self.assertEqual(calls[:2], [torch, ("ensure", ["monai>=1.6"], True, False)])
        self.assertEqual(calls[2:], [torch, ("install", ["monai>=1.6", "--constraint"], True)])

    def test_missing_extension_is_told(self) -> None:
        with self.modules(PyTorchUtils=None), self.assertRaisesRegex(UserError, "PyTorch extension is not installed"):
            install(plan(torch=None), lambda _: True)


class ReasonTest(unittest.TestCase):
    def test_reason_is_pips_last_error(self) -> None:
        lines = [
            "Collecting monai",
            "\x1b[31mERROR: Could not find a version that satisfies the requirement monai>=1.6\x1b[0m",
            "ERROR: No matching distribution found for monai>=1.6",
            "",
            "[notice] A new release of pip is available",
        ]
        text = reason(lines)
        self.assertTrue(text.endswith("No matching distribution found for monai>=1.6."))
        self.assertNotIn("notice", text)
        self.assertNotIn("\x1b", text)
        self.assertLess(len(reason(["ERROR: " + "x" * 5000])), 700)

    def test_remedy_fits_the_trouble(self) -> None:
        for line, word in (
            ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "certificates"),
            ("ProxyError('Cannot connect to proxy.')", "HTTPS_PROXY"),
            ("Failed to resolve 'pypi.org' ([Errno -3] Temporary failure in name resolution)", "connection"),
            ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "space"),
            ("[WinError 206] The filename or extension is too long", "long paths"),
            ("ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied", "may write"),
            ("ERROR: ResolutionImpossible: for help", "newer Slicer"),
        ):
            self.assertIn(word, remedy([line]), line)
        self.assertIn("Python console", remedy(["something else"]))


if __name__ == "__main__":
    unittest.main()

"""How the engine is started: the right Python, no trace of Slicer in another one, nothing changed in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest.mock import patch

from TCurLoraSegmentLib.engine import ENGINE_MAIN, Engine, default_engine, engine_of
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.worker import Worker

SOURCE = ENGINE_MAIN.parents[1]
SLICER = {
    "PYTHONHOME": "/opt/Slicer/lib/Python",
    "PYTHONPATH": "/opt/Slicer/lib",
    "PYTHONNOUSERSITE": "1",
    "LD_LIBRARY_PATH": "/opt/Slicer/lib:/usr/own",
    "DYLD_LIBRARY_PATH": "/opt/Slicer/lib",
    "QT_PLUGIN_PATH": "/opt/Slicer/plugins",
    "SSL_CERT_FILE": "/opt/Slicer/Slicer.crt",
    "PATH": "/opt/Slicer/bin:/usr/bin",
    "APPLAUNCHER_LEVEL": "1",
    "APPLAUNCHER_0_LD_LIBRARY_PATH": "/usr/own",
    "APPLAUNCHER_0_PATH": "/usr/bin",
    "HTTPS_PROXY": "http://proxy",
    "TCURLORA_HOME": "/daten ü",
}


class EngineTest(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory(prefix="Prüfung 病院 ")
        self.addCleanup(place.cleanup)
        self.place = Path(place.name)

    def python_slicer(self) -> Path:
        """A PythonSlicer that is this Python."""
        script = self.place / "PythonSlicer"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        return script

    def answer_of(self, engine: Engine, *arguments: str, **environment: str) -> object:
        worker = Worker(engine.command(*arguments), {**engine.environment(), **environment})
        worker.start()
        outcome = worker.wait(120)
        self.assertIsNotNone(outcome.result, outcome.sentence())
        return outcome.result

    @unittest.skipIf(os.name == "nt", "a shell script stands in")
    def test_slicers_python_is_the_default(self) -> None:
        script = self.python_slicer()
        with patch.dict(os.environ, {"PATH": f"{self.place}{os.pathsep}{os.environ['PATH']}"}):
            engine = default_engine()
            self.assertEqual(engine, Engine(script, own=True))
            self.assertEqual(engine_of("  "), engine)
            self.assertIsInstance(self.answer_of(engine, "adapters", "list"), list)

    def test_this_python_stands_in_where_there_is_no_slicer(self) -> None:
        with patch.dict(os.environ, {"PATH": ""}):
            self.assertEqual(default_engine(), Engine(Path(sys.executable), own=True))
            for executable in ("", None, "/opt/Slicer/bin/SlicerApp-real"):
                with patch("sys.executable", executable), self.assertRaisesRegex(UserError, "own Python was not found"):
                    default_engine()

    def test_other_python_is_found_or_refused(self) -> None:
        self.assertEqual(engine_of(sys.executable), Engine(Path(sys.executable), own=False))
        environment = self.place / "venv"
        (environment / "bin").mkdir(parents=True)
        shutil.copy(shutil.which("true") or sys.executable, environment / "bin" / "python")
        self.assertEqual(engine_of(str(environment)).python, environment / "bin" / "python")
        (self.place / "text").write_text("no program")
        for path in (self.place / "fehlt", self.place, self.place / "text"):
            with self.assertRaisesRegex(UserError, "There is no Python"):
                engine_of(str(path))

    def test_own_python_keeps_slicers_environment(self) -> None:
        with patch.dict(os.environ, SLICER, clear=True):
            before = dict(os.environ)
            environment = Engine(Path("python"), own=True).environment()
            self.assertEqual({**environment, **SLICER}, environment)
            self.assertEqual(environment["PYTHONUTF8"], "1")
            self.assertEqual(dict(os.environ), before)

    @unittest.skipUnless(sys.platform == "linux", "elsewhere arguments do not depend on the locale")
    def test_own_python_takes_arguments_of_any_characters(self) -> None:
        engine = Engine(Path("python"), own=True)
        for locale, expected in (({}, "C.UTF-8"), ({"LANG": "C"}, "C.UTF-8"), ({"LANG": "de_DE.UTF-8"}, None)):
            with patch.dict(os.environ, locale, clear=True):
                self.assertEqual(engine.environment().get("LC_ALL"), expected)

    def test_other_python_sees_the_environment_of_before_slicer(self) -> None:
        with patch.dict(os.environ, SLICER, clear=True):
            environment = Engine(Path("python"), own=False).environment()
            self.assertEqual(
                environment,
                {
                    "LD_LIBRARY_PATH": "/usr/own",
                    "PATH": "/usr/bin",
                    "HTTPS_PROXY": "http://proxy",
                    "TCURLORA_HOME": "/daten ü",
                    "OMP_WAIT_POLICY": "passive",
                    "PYTHONUTF8": "1",
                    "PYTHONUNBUFFERED": "1",
                },
            )
            os.environ.pop("APPLAUNCHER_0_PATH")
            self.assertEqual(Engine(Path("python"), own=False).environment()["PATH"], SLICER["PATH"])

    def test_threads_wait_as_the_user_has_set_it(self) -> None:
        with patch.dict(os.environ, {"OMP_WAIT_POLICY": "active"}):
            for own in (True, False):
                environment = Engine(Path("python"), own=own).environment()
                self.assertEqual(environment["OMP_WAIT_POLICY"], "active")

    def test_other_python_runs_in_spite_of_slicers_variables(self) -> None:
        own_path = {"APPLAUNCHER_0_PATH": os.environ["PATH"]}
        with patch.dict(os.environ, {**SLICER, **own_path, "TCURLORA_HOME": str(self.place)}):
            self.assertEqual(self.answer_of(engine_of(sys.executable), "adapters", "list"), [])

    def test_engine_runs_by_its_path_from_anywhere(self) -> None:
        """Also from a folder with modules of the same names, and without a trace of its own on Python's path."""
        copy = self.place / "拡張 Süd" / "TCurLoraSegment"
        for package in ("tcurlora", "tcurlora_contract"):
            shutil.copytree(SOURCE / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("tcurlora", "site", "events"):
            (self.place / f"{name}.py").write_text("raise SystemExit('the wrong module')")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, str(copy / "tcurlora" / "__main__.py"), "adapters", "list", "--json"],
            cwd=self.place,
            env={**environment, "TCURLORA_HOME": str(self.place), "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
        )
        self.assertEqual((done.returncode, done.stdout.strip()), (0, "[]"), done.stderr)

    def test_path_of_python_is_left_clean(self) -> None:
        script = (
            "import json, runpy, sys\n"
            f"sys.argv = ['tcurlora', '--version']\nsys.path.insert(0, {str(ENGINE_MAIN.parent)!r})\n"
            f"try: runpy.run_path({str(ENGINE_MAIN)!r}, run_name='__main__')\n"
            "except SystemExit: pass\n"
            "import tcurlora.errors\nprint(json.dumps(sys.path))"
        )
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, encoding="utf-8")
        self.assertEqual(done.returncode, 0, done.stderr)
        path = [str(Path(entry).resolve()) for entry in json.loads(done.stdout.splitlines()[-1]) if entry]
        self.assertNotIn(str(ENGINE_MAIN.parent), path)

    def test_command_is_a_list_of_arguments(self) -> None:
        engine = Engine(Path("/a b/python"), own=True)
        self.assertEqual(
            engine.command("segment", "--out", "x; rm -rf"),
            [str(Path("/a b/python")), str(ENGINE_MAIN), "segment", "--out", "x; rm -rf", "--json", "--attached"],
        )
        self.assertNotIn("--attached", engine.command("serve", attached=False))


class RuleTest(unittest.TestCase):
    def test_process_modules_know_neither_slicer_nor_qt(self) -> None:
        script = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "import TCurLoraSegmentLib.engine, TCurLoraSegmentLib.jobs, TCurLoraSegmentLib.worker\n"
            "import TCurLoraSegmentLib.installation\n"
            "found = {'slicer', 'vtk', 'qt', 'ctk', 'torch', 'monai', 'tcurlora', 'numpy'} & set(sys.modules)\n"
            "assert not found, found"
        )
        done = subprocess.run([sys.executable, "-c", script, str(SOURCE)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()

"""Job folders: fresh and writable, found again after a crash, never taken from a living process, tidied in time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from TCurLoraSegmentLib import jobs
from TCurLoraSegmentLib.errors import UserError
from TCurLoraSegmentLib.jobs import Job, data_folder, jobs_folder, new_job, tidy, unfinished_jobs
from TCurLoraSegmentLib.processes import start_of


class JobsTest(unittest.TestCase):
    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory(prefix="Größe 病院 ")
        self.addCleanup(place.cleanup)
        self.home = Path(place.name) / "Daten"
        environment = patch.dict(os.environ, {"TCURLORA_HOME": str(self.home)})
        environment.start()
        self.addCleanup(environment.stop)

    def begun(self, name: str = "a", command: str = "adapt") -> Job:
        """A job whose engine has started."""
        job = new_job(command, name)
        job.write_context({"name": name, "arguments": [command, "--out", "ü"]})
        (job.path / "job.json").write_text("{}")
        return job

    def state(self, job: Job, **state: object) -> None:
        (job.path / "worker.pid").write_text(json.dumps(state))

    def finish(self, job: Job) -> None:
        (job.path / "result.json").write_text('{"adapter": "A"}')

    def age(self, job: Job, days: float) -> None:
        then = time.time() - days * 86400
        for entry in (*job.path.iterdir(), job.path):
            os.utime(entry, (then, then))

    def test_folder_that_cannot_be_read_is_passed_over(self) -> None:
        mine, other = self.begun("mine"), self.begun("other")
        listed = Path.iterdir

        def refuse(path: Path) -> object:
            if path == other.path:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        shutil.rmtree(other.path)
        other.path.mkdir()
        with patch.object(Path, "iterdir", refuse):
            tidy()
            self.assertEqual([job.path for job in unfinished_jobs()], [mine.path])

    def test_new_job_is_an_empty_place_of_its_own(self) -> None:
        names = ("Hippocampus Süd/病院:\0*?", "", "..", "CON", "x" * 500, "x" * 500)
        made = [new_job("adapt", name) for name in names]
        self.assertEqual(len({job.path for job in made}), len(names))
        for job, name in zip(made, names, strict=True):
            self.assertEqual(job.path.parent, jobs_folder())
            self.assertEqual((job.command, job.name), ("adapt", name))
            self.assertTrue(job.inputs.is_dir())
            self.assertRegex(job.path.name, r"^adapt-\d{8}-\d{6}(-[A-Za-z0-9-]+)?$")
            self.assertLess(len(job.path.name), 60)
            self.assertEqual((job.context(), job.result(), job.command_line()), ({}, None, None))

    def test_context_survives(self) -> None:
        job = new_job("adapt", "Mandelkern 扁桃体")
        content = {"name": "ü", "arguments": ["adapt", "--data", "/ä b/病院"], "case_names": {"case-01": "Kopf"}}
        job.write_context(content)
        (again,) = jobs._jobs()
        self.assertEqual(again, job)
        self.assertEqual(again.context(), content)
        self.assertEqual(again.command_line(), content["arguments"])

    def test_unusable_folder_is_told(self) -> None:
        self.home.parent.joinpath("Daten").write_text("a file")
        with self.assertRaisesRegex(UserError, r"Daten.*cannot be written.*TCURLORA_HOME"):
            new_job("adapt", "a")

    def test_full_disk_is_told_before_anything_is_exported(self) -> None:
        full = patch.object(shutil, "disk_usage", return_value=SimpleNamespace(free=2**20))
        with full, self.assertRaisesRegex(UserError, r"almost full \(1 MB"):
            new_job("adapt", "a")
        self.assertEqual(list(jobs_folder().iterdir()), [])

    def test_what_a_crash_left_is_found(self) -> None:
        self.assertEqual(unfinished_jobs(), [])
        first, second = self.begun("first"), self.begun("second")
        self.begun(command="segment")
        new_job("adapt", "never started")
        self.finish(self.begun("finished"))
        child = subprocess.Popen([sys.executable, "-c", ""])
        self.state(first, pid=child.pid, started=start_of(child.pid))
        child.wait()
        self.assertEqual([job.name for job in unfinished_jobs()], ["second", "first"])
        self.assertFalse(first.running)
        self.assertEqual(unfinished_jobs()[0].command_line(), second.command_line())

    def test_result_that_was_cut_off_is_none(self) -> None:
        job = self.begun()
        (job.path / "result.json").write_text('{"adapter":')
        self.assertFalse(job.finished)
        self.assertEqual(len(unfinished_jobs()), 1)
        self.finish(job)
        self.assertTrue(job.finished)

    def test_job_of_a_living_process_is_nobody_elses(self) -> None:
        job = self.begun()
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            self.state(job, pid=child.pid, started=start_of(child.pid))
            self.assertTrue(job.running)
            self.assertEqual(unfinished_jobs(), [])
            self.age(job, 100)
            tidy()
            self.assertTrue(job.path.is_dir())
            self.state(job, pid=child.pid, started="long ago")  # the number belongs to another program now
            self.assertFalse(job.running)
            self.assertEqual(len(unfinished_jobs()), 1)
        finally:
            child.kill()
            child.wait()

    def test_damaged_files_are_no_obstacle(self) -> None:
        job = self.begun()
        for content in ("", "{", "[]", "\udcff", '{"pid": "x"}', '{"pid": 1}'):
            (job.path / "worker.pid").write_text(content, errors="surrogateescape")
            self.assertFalse(job.running or job.cancelled)
        job.scene.write_text('{"created": "yesterday"}')
        self.assertEqual([(j.command, j.context()) for j in jobs._jobs()], [("", {})])

    def test_tidy_keeps_what_is_young_or_can_be_resumed(self) -> None:
        made = {name: self.begun(name) for name in ("crashed", "finished", "cancelled", "young")}
        made["segment"] = self.begun("segment", "segment")
        made["unstarted"] = new_job("adapt", "unstarted")
        made["resumed"] = self.begun("resumed")
        self.finish(made["finished"])
        self.finish(made["young"])
        self.state(made["cancelled"], ended="cancelled")
        self.state(made["resumed"], ended="cancelled")
        self.assertTrue(made["cancelled"].cancelled)
        for name, job in made.items():
            if name != "young":
                self.age(job, 15)
        self.state(made["resumed"], pid=os.getpid(), started=start_of(os.getpid()))
        tidy(keep_days=14)
        self.assertEqual({name for name, job in made.items() if job.path.exists()}, {"crashed", "young", "resumed"})

    def test_delete_takes_all(self) -> None:
        job = self.begun()
        (job.inputs / "images").mkdir()
        (job.inputs / "images" / "scan.nrrd").write_bytes(b"a patient")
        job.delete()
        job.delete()
        self.assertFalse(job.path.exists())


class PlaceTest(unittest.TestCase):
    def test_engine_and_slicer_mean_the_same_folder(self) -> None:
        from tcurlora.models import adapter_library

        for environment in ({"TCURLORA_HOME": "/a b/ü"}, {"XDG_DATA_HOME": "/data"}, {}):
            for platform in ("linux", "darwin", "win32"):
                with (
                    self.subTest(environment, platform=platform),
                    patch.dict(os.environ),
                    patch("sys.platform", platform),
                ):
                    for name in ("TCURLORA_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
                        os.environ.pop(name, None)
                    os.environ.update(environment)
                    self.assertEqual(data_folder(), adapter_library.data_folder())
                    self.assertEqual(jobs_folder().parent, adapter_library.library_folder().parent)


if __name__ == "__main__":
    unittest.main()

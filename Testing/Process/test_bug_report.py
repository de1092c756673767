"""What a bug report holds, and what it does not."""

from __future__ import annotations

import unittest
from pathlib import Path

from TCurLoraSegmentLib.bug_report import LINES, compose, scrubbed


class BugReportTest(unittest.TestCase):
    def test_paths_of_every_system_are_taken_out(self) -> None:
        for path in (
            f"{Path.home()}/Klinik Nord/scan 1.nrrd",
            "/daten ü/Huber/scan.nii.gz",
            "D:\\Daten\\Huber Eva\\scan.nrrd",
            "\\\\server\\share\\Huber\\x.nrrd",
        ):
            said = scrubbed(f"It could not read '{path}' today.")
            for word in ("Huber", "Klinik", "scan", "daten", "Eva", "share"):
                self.assertNotIn(word, said, path)
            self.assertIn("It could not read", said)
            self.assertIn("today.", said)

    def test_names_are_taken_out_whole(self) -> None:
        said = scrubbed("Hübsch, Erika: scan of hübsch is bad; Hübschmann is a word.", ["Hübsch", "Hübsch, Erika"])
        self.assertEqual(said, "(name): scan of (name) is bad; Hübschmann is a word.")

    def test_what_is_no_path_stays(self) -> None:
        for text in ("12/20 steps", "torch 2.9.0+cpu", "3.5 s/step", "loss: 0.1"):
            self.assertEqual(scrubbed(text), text)

    def test_versions_come_first_and_the_end_of_the_log(self) -> None:
        items = [{"name": "torch", "value": "2.9", "ok": True}, {"name": "monai", "value": "missing", "ok": False}]
        log = "\n".join(f"line {number}" for number in range(1000))
        text = compose("5.12", items, log, [])
        self.assertIn("torch: 2.9\nmonai: missing (!)", text)
        self.assertIn("line 999", text)
        self.assertNotIn(f"line {999 - LINES}\n", text)


if __name__ == "__main__":
    unittest.main()

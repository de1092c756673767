"""Try the oldest and the newest versions of the packages that pyproject.toml allows.

    python Testing/bounds.py                               # both, in new virtual environments
    python Testing/bounds.py --only oldest --env DIR       # the environments stay in DIR
    python Testing/bounds.py --torch 2.13.0                # this version of torch in both, whatever the bound says
    python Testing/bounds.py --python /path/to/python3.12  # another Python for the environments

A wheel is built from the project. In an empty environment, outside of the source tree, it is installed with its
dependencies, and the program has to say what it is, adapt the shipped base model to two made scans in one step, and
segment with the result. Then the optional packages come, and a part of the engine's tests runs on what is installed.
The bounds are read from pyproject.toml; for the oldest, each is taken as the exact version. Needs Python 3.11 or later
itself, and nothing but Python. The exit code is 1 when anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("demo", "compare")
# What the tests below import beside the engine and its extras.
TOOLS = ("pytest", "nibabel", "pytorch-ignite")
# What a version can break: how networks are made, trained, saved and merged, and how files are read and written.
TESTS = (
    *("adapter", "adapter_files", "base_models", "compare_methods", "demo_data", "geometry", "images", "inference"),
    *("merging", "pictures", "segmentation", "stacks", "tensor_cur", "training"),
)

SITE = """
import json, sys
from pathlib import Path
import numpy as np
import SimpleITK as sitk

site = Path(sys.argv[1])
for part in ("images", "labels"):
    (site / part).mkdir(parents=True)
for number in range(2):
    voxels = np.random.default_rng(number).normal(100, 15, (40, 50, 40)).astype(np.float32)
    inside = np.zeros(voxels.shape, np.uint8)
    inside[15:25, 15:35, 15 + number : 25] = 1
    for part, array in (("images", voxels + 60 * inside), ("labels", inside)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(site / part / f"scan{number}.nii.gz"))
(site / "dataset.json").write_text(json.dumps({"labels": {"1": "hippocampus"}}))
"""
SAME_GEOMETRY = """
import sys
import SimpleITK as sitk

scan, labels = (sitk.ReadImage(path) for path in sys.argv[1:])
for name in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
    assert getattr(scan, name)() == getattr(labels, name)(), name
"""
VERSIONS = """
import importlib.metadata, json, platform, sys

print(json.dumps({"Python": platform.python_version(), **{n: importlib.metadata.version(n) for n in sys.argv[1:]}}))
"""


class Failed(Exception):
    """Something that was run did not end well; the message is the end of what it said."""


@dataclass
class Found:
    """What was seen in one environment.

    Attributes:
        versions: of Python and of every package that has a bound.
        results: what was done, and how it ended.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note how the work within ends; what comes after it is left out when it fails."""
        began = time.monotonic()
        self.results[what] = "FAILED"
        try:
            yield
        except Failed:
            self.failed = True
            raise
        if self.results[what] == "FAILED":
            self.results[what] = f"ok, {time.monotonic() - began:.0f} s"


def requirements() -> dict[str, str]:
    """Read the packages that the engine and its extras need, with their lower bounds; "" for none."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        project = tomllib.load(stream)["project"]
    lines = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    found = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)\s*(?:>=\s*([\w.]+))?", line)
        if match is None:
            raise SystemExit(f"'{line}' in pyproject.toml is not of the form 'package>=version'.")
        found[match.group(1)] = match.group(2) or ""
    return found


def pins(which: str, torch: str) -> list[str]:
    """Say for each package which version to install.

    Args:
        which: `oldest` or `newest`.
        torch: a version of torch that overrides the bound; "" for none.
    """
    bounds = requirements() | ({"torch": torch} if torch else {})
    exact = {name for name in bounds if which == "oldest" or (name == "torch" and torch)}
    return [f"{name}=={bound}" if bound and name in exact else name for name, bound in bounds.items()]


def run(command: Sequence[str | Path], log: Path, folder: Path) -> str:
    """Run a command of the environment, away from the source tree.

    Returns:
        What it said.

    Raises:
        Failed: when its exit code is not 0.
    """
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {**clean, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "TCURLORA_HOME": str(folder / "home")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(map(str, command))}\n{done.stdout}\n")
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}")
    return done.stdout


def try_versions(which: str, torch: str, folder: Path, python: str) -> Found:
    """Make an environment, install into it, and use it."""
    found = Found()
    folder.mkdir(parents=True)
    log, place = folder / "log.txt", folder / "somewhere else"
    place.mkdir()
    own = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    program = own.with_name("tcurlora.exe" if os.name == "nt" else "tcurlora")
    pip: list[str | Path] = [own, "-m", "pip", "install", "--disable-pip-version-check"]
    wanted = pins(which, torch)
    needed = len(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])
    try:
        with found.trying("wheel built and installed"):
            run([python, "-m", "venv", folder / "venv"], log, place)
            # From a copy, because building leaves files in the source tree, and takes up what an earlier one left.
            unneeded = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
            source = shutil.copytree(ROOT, folder / "source", ignore=unneeded)
            run([own, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source], log, place)
            shutil.rmtree(source)
            (wheel,) = folder.glob("*.whl")
            run([*pip, *wanted[:needed], wheel], log, place)
        with found.trying("--help, doctor, models list"):
            for command in (["--help"], ["doctor"], ["models", "list"]):
                run([program, *command], log, place)
        scan, labels = place / "site" / "images" / "scan0.nii.gz", place / "labels.nii.gz"
        with found.trying("adapt"):
            run([own, "-c", SITE, place / "site"], log, place)
            short = ["--steps", "1", "--folds", "0", "--out", "adapter"]
            run([program, "adapt", "--base", "hippocampus_t1_unetr", "--data", "site", *short], log, place)
        with found.trying("segment"):
            run([program, "segment", "--model", "adapter", "--input", scan, "--out", labels], log, place)
            run([own, "-c", SAME_GEOMETRY, scan, labels], log, place)
        with found.trying("optional packages installed"):
            run([*pip, *wanted, *TOOLS], log, place)
        with found.trying("tests"):
            files = [ROOT / "Testing" / "Engine" / f"test_{name}.py" for name in TESTS]
            said = run([own, "-m", "pytest", "-p", "no:cacheprovider", *files], log, place)
            found.results["tests"] = said.strip().splitlines()[-1].strip("= ")
    except Failed as error:
        print(f"\n{which}: {error}\n", file=sys.stderr)
        if found.results.get("tests") == "FAILED":
            found.results["tests"] = f"FAILED: {str(error).strip().splitlines()[-1]}"
    if found.results["wheel built and installed"] != "FAILED":
        optional = found.results.get("optional packages installed", "FAILED") != "FAILED"
        names = list(requirements())[: None if optional else needed]
        found.versions = json.loads(run([own, "-c", VERSIONS, *names], log, place))
    return found


def table(columns: Mapping[str, Found]) -> str:
    """Put what was seen side by side."""
    header = ["", *columns]
    bounds = requirements()
    rows = [
        [f"{name} (>= {bounds[name]})" if bounds.get(name) else name]
        + [found.versions.get(name, "-") for found in columns.values()]
        for name in ("Python", *bounds)
    ]
    doings = dict.fromkeys(what for found in columns.values() for what in found.results)
    rows += [[what, *(found.results.get(what, "not tried") for found in columns.values())] for what in doings]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    )


def main() -> int:
    """Try the versions that were asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("oldest", "newest"), help="one of the two")
    parser.add_argument("--env", type=Path, help="where the environments stay; otherwise they are deleted")
    parser.add_argument("--torch", default="", metavar="VERSION", help="torch for both, in place of its bounds")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    options = parser.parse_args()
    chosen = (options.only,) if options.only else ("oldest", "newest")
    with tempfile.TemporaryDirectory(prefix="bounds ü ") as scratch:
        place = (options.env or Path(scratch)).resolve()
        taken = [which for which in chosen if (place / which).exists()]
        if taken:
            print(f"'{place / taken[0]}' is there already: delete it, or choose another --env.", file=sys.stderr)
            return 2
        found = {which: try_versions(which, options.torch, place / which, options.python) for which in chosen}
        print(table(found))
        if options.torch:
            print(f"\ntorch was {options.torch} in each, as asked for: its own bounds were not tried.")
    return int(any(one.failed for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())

"""Set up a virtual environment with everything that is needed, then run the demo or the tests in it.

    python Testing/fresh.py demo
    python Testing/fresh.py tests
    python Testing/fresh.py engine-tests   # those that need neither Slicer's libraries nor Qt

Needs nothing but Python: 3.11 for all tests, 3.10 to 3.12 for the rest. The environment is made in .venv and used again
the next time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The version that the numbers in the documentation were measured with; pyproject.toml says what else is allowed.
TORCH = "torch==2.13.0"
# The files of tests are shared out to two processes.
TWO_AT_A_TIME = ("-n", "2", "--dist", "loadfile")
# Slicer's libraries are there for one Python only.
PYTHONS = {"demo": ((3, 10), (3, 12)), "tests": ((3, 11), (3, 11)), "engine-tests": ((3, 10), (3, 12))}
FOLDERS = {"tests": ("Testing",), "engine-tests": ("Testing/Engine", "Testing/Faults")}
# Slicer's views outside of Slicer ask for an older slicer-core than the tests', and work with theirs. nnU-Net, the
# reference of the tests, and its networks ask for much that neither needs here, such as torchvision; what they do need
# is among the tests' own packages.
WITHOUT_DEPENDENCIES = {
    "tests": (
        "slicer-layer-dm==2.0.0",
        "nnunetv2==2.8.1",
        "dynamic-network-architectures==0.4.4",
        "batchgenerators==0.25.5",
        "batchgeneratorsv2==0.3.6",
        "acvl-utils==0.2.6",
    )
}


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def set_up(environment: Path, extra: str) -> None:
    """Make the environment where it is missing, and install the project with one of its extras."""
    python = python_of(environment)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, f"{ROOT}[{extra}]"], check=True)
    for package in WITHOUT_DEPENDENCIES.get(extra, ()):
        subprocess.run([*pip, "--no-deps", package], check=True)


def main() -> int:
    """Set up and run; the exit code is that of what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "tests", "engine-tests"))
    parser.add_argument("--env", type=Path, default=ROOT / ".venv", help="the virtual environment")
    args, rest = parser.parse_known_args()  # what is unknown here is for the demo or for pytest
    oldest, newest = PYTHONS[args.what]
    if not oldest <= sys.version_info[:2] <= newest:
        wanted = " to ".join(f"{major}.{minor}" for major, minor in dict.fromkeys((oldest, newest)))
        print(f"Python {wanted} is needed, and this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    set_up(args.env, args.what)
    if args.what == "demo":
        module = ["tcurlora", "demo"]
    else:
        module = ["pytest", *(str(ROOT / folder) for folder in FOLDERS[args.what]), *TWO_AT_A_TIME]
    # Two processes of one thread each are faster than two threads that wait for one another.
    environment = os.environ | ({} if args.what == "demo" else {"OMP_NUM_THREADS": "1"})
    return subprocess.run([str(python_of(args.env)), "-m", *module, *rest], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())

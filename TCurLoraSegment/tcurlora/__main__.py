"""Run the command line: `python -m tcurlora`, or by the path of this file where the package is not installed."""

import sys
from importlib import import_module
from pathlib import Path

if not __package__:
    # Started by its path. Python has put the package's own folder on the path, where a module such as `site` or
    # `events` would hide another of that name. The parent is needed only until the package knows where it lives.
    _folder = Path(__file__).resolve().parent
    sys.path[:] = [str(_folder.parent), *(entry for entry in sys.path if Path(entry).resolve() != _folder)]
    import_module("tcurlora.cli.commands")
    del sys.path[0]

from tcurlora.cli.commands import main

if __name__ == "__main__":  # a child process of multiprocessing imports this file under another name
    sys.exit(main())

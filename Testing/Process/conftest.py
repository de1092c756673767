"""Find the modules of the extension, as Slicer does by its module path, and the engine's tiny base model."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

TESTING = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTING))
sys.path.insert(0, str(TESTING.parent / "TCurLoraSegment"))

_engine = import_module("Engine.conftest")
make_scan, make_site, site = _engine.make_scan, _engine.make_site, _engine.site
make_bundle, bundle = _engine.make_bundle, _engine.bundle

"""The tests of faults share the tiny base model and site of the engine's tests, and scripts of their own folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

_spec = importlib.util.spec_from_file_location("engine_fixtures", HERE.parent / "Engine" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

own_library = _fixtures.own_library
same_locale = _fixtures.same_locale
make_bundle = _fixtures.make_bundle
make_scan = _fixtures.make_scan
make_site = _fixtures.make_site
bundle = _fixtures.bundle
site = _fixtures.site
tree = _fixtures.tree
recorder = _fixtures.recorder

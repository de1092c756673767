"""MONAI without its optional packages: quicker to load, the same results, and nothing is lost for others."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk

import tcurlora
from tcurlora.inference.scans import SegmentRequest, run_segment
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import adapt
from tcurlora.models.adapter_files import save_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents

PACKAGE = Path(tcurlora.__file__).parent
TRANSFORMS = (
    ("NormalizeIntensity", {"nonzero": True, "channel_wise": True}),
    ("ScaleIntensity", {"minv": 0.0, "maxv": 1.0}),
    ("ScaleIntensityRange", {"a_min": 10, "a_max": 90, "b_min": 0, "b_max": 1, "clip": True}),
    ("ScaleIntensityRangePercentiles", {"lower": 1, "upper": 99, "b_min": 0, "b_max": 1}),
)
# Every kind of network and every transform of intensities that a base model may ask for.
RESULTS = f"""
import hashlib, numpy, torch
from monai.networks import nets
from tcurlora.models.monai_preprocessing import MonaiPreprocessing

array = numpy.random.default_rng(0).normal(50, 20, (1, 64, 64, 64)).astype("float32")
digest = hashlib.sha256()
for step in {TRANSFORMS!r}:
    digest.update(MonaiPreprocessing(None, (step,)).normalize(array).tobytes())
for make in (
    lambda: nets.UNETR(1, 2, (64, 64, 64), 4, 24, 48, 2),
    lambda: nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=12),
    lambda: nets.SegResNet(init_filters=8, out_channels=2),
    lambda: nets.DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2)),
):
    torch.manual_seed(0)
    with torch.no_grad():
        digest.update(make().eval()(torch.from_numpy(array[None])).numpy().tobytes())
print(digest.hexdigest())
"""


def run(code: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, encoding="utf-8", env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_results_are_the_same_to_the_last_bit() -> None:
    assert run(f"from tcurlora.runtime.monai_import import import_monai; import_monai()\n{RESULTS}") == run(RESULTS)


def test_packages_stay_unloaded_and_can_be_used_afterwards() -> None:
    run(
        "import sys\n"
        "from tcurlora.runtime.monai_import import OPTIONAL, import_monai\n"
        "import_monai()\n"
        "assert 'monai.networks.nets' in sys.modules\n"
        "assert not set(OPTIONAL) & set(sys.modules), set(OPTIONAL) & set(sys.modules)\n"
        "import scipy.ndimage, matplotlib\n"
        "assert scipy.ndimage.distance_transform_edt([1, 1, 0]).tolist() == [2, 1, 0]\n"
    )


def test_what_is_needed_or_loaded_already_is_left_alone() -> None:
    run(
        "import sys, matplotlib\n"
        "from tcurlora.runtime.monai_import import import_monai\n"
        "import_monai(needed=('scipy',))\n"
        "assert sys.modules['matplotlib'] is matplotlib\n"
        "from monai.transforms.utils import distance_transform_edt\n"
        "assert distance_transform_edt(__import__('numpy').ones((1, 2, 2))).shape == (1, 2, 2)\n"
    )


def test_library_gives_its_user_the_whole_of_monai() -> None:
    run(
        "import sys, tcurlora.inference.scans, tcurlora.cli.commands\n"
        "assert tcurlora.cli.commands.main(['check', '--base', 'none', '--data', 'none']) == 2\n"
        "assert 'scipy' in sys.modules\n"
    )


def test_segment_as_a_program_loads_little_and_gives_the_same_file(
    bundle: Path, tmp_path: Path, make_scan: Callable[..., Any]
) -> None:
    scan = tmp_path / "頭 ä.nrrd"
    sitk.WriteImage(make_scan(3, spacing=(1.1, 0.9, 1.0))[0], scan)
    code = (
        "import sys\n"
        "from tcurlora.cli.commands import main\n"
        "assert main() == 0\n"
        "assert not {'scipy', 'matplotlib', 'transformers', 'pandas', 'nibabel'} & set(sys.modules)\n"
    )
    arguments = ("segment", "--model", str(bundle), "--input", str(scan), "--uncertainty", "--out")
    run(code, *arguments, str(tmp_path / "a.seg.nrrd"))
    request = SegmentRequest(str(bundle), (str(scan),), str(tmp_path / "b.seg.nrrd"), uncertainty=True)
    run_segment(request, NullEvents())
    for ending in (".seg.nrrd", "_uncertainty.nii.gz"):
        a, b = (hashlib.sha256((tmp_path / f"{name}{ending}").read_bytes()).hexdigest() for name in "ab")
        assert a == b


def test_segment_loads_neither_torchs_compiler_nor_what_only_others_need(
    tmp_path: Path, make_scan: Callable[..., Any]
) -> None:
    """These packages take longer to load than everything that a segmentation does."""
    scan = tmp_path / "scan.nrrd"
    sitk.WriteImage(make_scan(3)[0], scan)
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "from tcurlora.cli.commands import main\n"
        "assert main() == 0\n"
        "from tcurlora.runtime.monai_import import OPTIONAL\n"
        "unneeded = {'torch._dynamo', 'torch._inductor', 'sympy', 'peft', 'tcurlora.training.trainer', *OPTIONAL}\n"
        "loaded = unneeded & set(sys.modules) - before\n"
        "assert not loaded, loaded\n"
    )
    for model in ("hippocampus_t1_unetr", str(write_adapter(tmp_path / "adapter"))):
        out = tmp_path / f"{Path(model).name}.nii.gz"
        run(code, "segment", "--model", model, "--input", str(scan), "--out", str(out))
        assert out.is_file()


def write_adapter(folder: Path) -> Path:
    """An adapter of the shipped model that changes nothing."""
    base = load_base_model("hippocampus_t1_unetr")
    structures = [structure.to_dict() for structure in base.labelled_structures()]
    model = adapt(base.build(trial=False), TensorCurConfig(r=4))
    save_adapter(model, folder, {"structures": structures, "base_model": {"sha256": base.sha256}})
    return folder


def test_garbage_is_collected_again_after_the_import() -> None:
    run(
        "import gc\n"
        "from tcurlora.runtime.monai_import import import_monai\n"
        "for switch in (gc.disable, gc.enable):\n"
        "    switch()\n"
        "    before = gc.isenabled()\n"
        "    import_monai()\n"
        "    assert gc.isenabled() == before\n"
    )


def test_evaluate_as_a_program_measures_distances(site: Path) -> None:
    code = "from tcurlora.cli.commands import main\nassert main() == 0\n"
    labels = str(site / "labels")
    assert '"hd95_mm": 0.0' in run(code, "evaluate", "--pred", labels, "--truth", labels, "--json")

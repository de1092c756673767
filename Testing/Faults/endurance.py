"""Segment one scan after another in one process, and a scan as large as they come, and watch the memory.

    python Testing/Faults/endurance.py --count 200
    python Testing/Faults/endurance.py --large 512 512 600

What counts is the memory that only this process has (its resident set without what it shares with files). The large
scan has 0.8 mm voxels and is segmented, in a process of its own whose highest resident set is reported, with a small
network of three classes in windows of 96 x 96 x 96 voxels, or with the model that --model names.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "TCurLoraSegment"


def private_bytes() -> int:
    """The memory that only this process has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def growth(count: int, folder: Path, warm_up: int = 10) -> tuple[int, int]:
    """Segment `count` scans with one worker's cache of models, after a few to warm up.

    Returns:
        Private bytes before and after.
    """
    from samples import make_scan, write_bundle

    from tcurlora.imaging.images import write_image
    from tcurlora.inference.scans import SegmentRequest, run_segment
    from tcurlora.inference.segmenter_cache import SegmenterCache
    from tcurlora.runtime.events import NullEvents

    bundle = write_bundle(folder / "bundle")
    scan = folder / "scan.nii.gz"
    write_image(make_scan(), scan)
    cache = SegmenterCache()
    before = 0
    for number in range(warm_up + count):
        if number == warm_up:
            before = private_bytes()
        request = SegmentRequest(str(bundle), (str(scan),), str(folder / f"r{number}.seg.nrrd"), uncertainty=True)
        run_segment(request, NullEvents(), segmenters=cache)
    return before, private_bytes()


def segment_large(size: tuple[int, ...], model: str, folder: Path) -> int:
    """Segment a scan of noise of that size; return the highest resident set that the process ever had.

    Raises:
        RuntimeError: when it fails.
    """
    import numpy as np
    import SimpleITK as sitk
    from kills import start

    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 1500, size[::-1]).astype(np.int16))
    image.SetSpacing((0.8, 0.8, 0.8))
    sitk.WriteImage(image, folder / "large.mha")
    del image
    process = start(
        "segment", "--model", model, "--input", str(folder / "large.mha"), "--out", str(folder / "r.nii.gz")
    )
    assert process.stdout is not None
    for line in process.stdout:
        last = line
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise RuntimeError(last)
    return usage.ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="segmentations in one process")
    parser.add_argument("--large", type=int, nargs=3, metavar="N", help="size of a large scan")
    parser.add_argument("--model", default="", help="for the large scan")
    options = parser.parse_args()
    sys.path[:0] = [str(PACKAGE), str(HERE)]
    from samples import write_bundle

    with tempfile.TemporaryDirectory() as scratch:
        if options.count:
            began = time.monotonic()
            before, after = growth(options.count, Path(scratch))
            seconds = time.monotonic() - began
            print(
                f"{options.count} segmentations, {seconds:.0f} s: {before / 1e6:.1f} MB before, {after / 1e6:.1f} after"
            )
        if options.large:
            began = time.monotonic()
            model = options.model or str(write_bundle(Path(scratch) / "wide", window=96))
            peak = segment_large(tuple(options.large), model, Path(scratch))
            print(f"{options.large}: highest resident set {peak / 1e9:.2f} GB, {time.monotonic() - began:.0f} s")
    print(f"This process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())

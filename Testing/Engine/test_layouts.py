"""Where scans and labels lie: nnU-Net's folders, a folder for each case, lists; and scans of several channels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dicom_samples import write_rtstruct, write_series

from tcurlora.cases.channels import read_case_image, with_channels_of
from tcurlora.cases.checks import check_cases
from tcurlora.cases.dataset import find_cases
from tcurlora.errors import InputError
from tcurlora.imaging.channels import Scan, canonical, in_order, read_channels
from tcurlora.imaging.image_warnings import ImageWarning
from tcurlora.imaging.structures import Structure
from tcurlora.inference import scans
from tcurlora.inference.scans import SegmentRequest, plan_tasks, run_segment
from tcurlora.models.opening import load_base_model
from tcurlora.runtime.events import NullEvents

SHAPE = (8, 9, 10)
LIVER = [Structure("liver", 1)]


def scan(value: float, shape: tuple[int, ...] = SHAPE, spacing: tuple[float, ...] = (1.0, 1.1, 1.2)) -> sitk.Image:
    """A scan around a value that tells which one it is."""
    array = np.random.default_rng(int(value)).normal(value, 1, shape).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    return image


def mask(shape: tuple[int, ...] = SHAPE) -> sitk.Image:
    array = np.zeros(shape, np.uint8)
    array[2:5, 2:6, 3:7] = 1
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.1, 1.2))
    return image


def write(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def means(image: sitk.Image) -> list[float]:
    """The value around which each component lies."""
    voxels = sitk.GetArrayFromImage(image)
    return [round(float(voxels[..., index].mean())) for index in range(image.GetNumberOfComponentsPerPixel())]


# Layouts


@pytest.mark.parametrize("listed", ["", "nnU-Net 1", "nnU-Net 2"])
def test_raw_folder_of_nnunet(tmp_path: Path, listed: str) -> None:
    for number, name in enumerate(("brain_001", "brain_002"), start=1):
        for channel in range(2):
            write(scan(100 * number + 10 * channel), tmp_path / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        write(mask(), tmp_path / "labelsTr" / f"{name}.nii.gz")
    write(scan(1), tmp_path / "imagesTs" / "brain_003_0000.nii.gz")
    content: dict[str, Any] = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "liver": 1}}
    if listed == "nnU-Net 1":
        content = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background", "1": "liver"}}
        names = ("brain_001", "brain_002")
        content["training"] = [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names
        ]
    if listed:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = find_cases(tmp_path)
    assert [case.name for case in dataset.cases] == ["brain_001", "brain_002"]
    assert dataset.structures == (tuple(LIVER) if listed else ())
    assert len({case.subject for case in dataset.cases}) == 2
    plain = with_channels_of(dataset, ["T1", "FLAIR"])
    assert [means(read_case_image(case)) for case in plain.cases] == [[100, 110], [200, 210]]
    assert not plain.findings
    turned = with_channels_of(dataset, ["flair", "t1w"])
    if listed:  # the names of the channels say that the model wants them the other way round
        assert [means(read_case_image(case)) for case in turned.cases] == [[110, 100], [210, 200]]
        assert [(f.code, f.severity) for f in turned.findings] == [("channels_reordered", "note")]
    else:
        assert means(read_case_image(turned.cases[0])) == [100, 110]


def test_single_channel_of_nnunet_is_a_plain_scan(tmp_path: Path) -> None:
    write(scan(7), tmp_path / "imagesTr" / "a_0000.nii.gz")
    write(mask(), tmp_path / "labelsTr" / "a.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert case.name == "a" and case.image.name == "a_0000.nii.gz" and case.channels == ()
    assert not with_channels_of(find_cases(tmp_path), ["T1"]).findings


def test_running_numbers_of_four_digits_are_no_channels(tmp_path: Path) -> None:
    for name in ("scan_0000", "scan_0001"):
        write(scan(7), tmp_path / "images" / f"{name}.nii.gz")
        write(mask(), tmp_path / "labels" / f"{name}.nii.gz")
    assert [(case.name, case.channels) for case in find_cases(tmp_path).cases] == [("scan_0000", ()), ("scan_0001", ())]


def test_missing_numbers_are_named(tmp_path: Path) -> None:
    for name, channels in (("a", (0, 1)), ("b", (0,)), ("c", (0, 2))):
        for channel in channels:
            write(scan(7), tmp_path / "images" / f"{name}_{channel:04d}.nii.gz")
        write(mask(), tmp_path / "labels" / f"{name}.nii.gz")
    with pytest.raises(InputError, match=r"'c' has no channel 0001 .*'b' has no channel 0001"):
        find_cases(tmp_path)


@pytest.mark.parametrize("layout", ["TotalSegmentator", "BraTS"])
def test_folder_for_each_case(tmp_path: Path, layout: str) -> None:
    for number, name in enumerate(("s0001", "s0002"), start=1):
        if layout == "TotalSegmentator":
            write(scan(number), tmp_path / name / "ct.nii.gz")
            write(mask(), tmp_path / name / "segmentations" / "liver.nii.gz")
            write(mask() * 0, tmp_path / name / "segmentations" / "spleen.nii.gz")
        else:
            for channel, value in (("t1", 10), ("flair", 20)):
                write(scan(value * number), tmp_path / name / f"{name}_{channel}.nii.gz")
            write(mask(), tmp_path / name / f"{name}_seg.nii.gz")
    (tmp_path / "meta.csv").write_text("x")
    dataset = find_cases(tmp_path)
    assert [case.name for case in dataset.cases] == ["s0001", "s0002"]
    if layout == "TotalSegmentator":
        assert {case.image.name for case in dataset.cases} == {"ct.nii.gz"}
        assert {case.label.name for case in dataset.cases} == {"segmentations"}
    else:
        cases = with_channels_of(dataset, ["T1", "FLAIR"]).cases
        assert [means(read_case_image(case)) for case in cases] == [[10, 20], [20, 40]]
    (tmp_path / "s0003").mkdir()
    write(scan(3), tmp_path / "s0003" / "ct.nii.gz")
    with pytest.raises(InputError, match="s0003 has no segmentation"):
        find_cases(tmp_path)


def test_list_of_other_scans_is_told(tmp_path: Path) -> None:
    write(scan(7), tmp_path / "a.nii.gz")
    write(mask(), tmp_path / "b.nii.gz")
    entry = {"image": "a.nii.gz", "label": "b.nii.gz"}
    (tmp_path / "list.json").write_text(json.dumps({"training": [entry], "validation": [entry]}))
    assert [(f.code, f.severity) for f in find_cases(tmp_path / "list.json").findings] == [("list_not_used", "note")]


# Channels


def folder_of_channels(root: Path, **channels: float) -> Path:
    for name, value in channels.items():
        write(scan(value), root / "images" / "p1" / f"p1_{name}.nii.gz")
    write(mask(), root / "labels" / "p1.nii.gz")
    return root


def test_channels_in_a_folder_are_ordered_by_their_names(tmp_path: Path) -> None:
    root = folder_of_channels(tmp_path, T1=10, T2=20, FLAIR=30)
    for wanted, expected in ((["T1", "T2", "FLAIR"], [10, 20, 30]), (["t2-flair", "T1w", "t2"], [30, 10, 20])):
        dataset = with_channels_of(find_cases(root), wanted)
        assert not dataset.findings and means(read_case_image(dataset.cases[0])) == expected
        codes = {finding.code for finding in check_cases(dataset, LIVER, in_channels=3, minimum=1)}
        assert codes == {"few_cases"}


@pytest.mark.parametrize(
    ("wanted", "code", "word"),
    [
        (["T1", "T2", "FLAIR"], "missing_channel", "'FLAIR'"),
        (["T1", "FLAIR"], "unknown_channels", "'T2'"),
        (["channel 1", "channel 2"], "unknown_channels", "'T1'"),
        (["T1"], "missing_channel", "1"),
    ],
)
def test_channels_that_are_not_the_models_are_told(tmp_path: Path, wanted: list[str], code: str, word: str) -> None:
    dataset = with_channels_of(find_cases(folder_of_channels(tmp_path, T1=10, T2=20)), wanted)
    (finding,) = dataset.findings
    assert (finding.case, finding.code, finding.severity) == ("p1", code, "error") and word in finding.message
    told = [f.code for f in check_cases(dataset, LIVER, in_channels=len(wanted), minimum=1) if f.severity == "error"]
    assert told == [code]


def test_list_of_channels(tmp_path: Path) -> None:
    for name, value in (("p1_T1", 10), ("p1_T2", 20), ("x", 30)):
        write(scan(value), tmp_path / f"{name}.nii.gz")
    write(mask(), tmp_path / "label.nii.gz")

    def listed(*names: str) -> Any:
        entry = {"image": [f"{name}.nii.gz" for name in names], "label": "label.nii.gz"}
        (tmp_path / "list.json").write_text(json.dumps({"training": [entry]}))
        return with_channels_of(find_cases(tmp_path / "list.json"), ["T1", "T2"])

    assert means(read_case_image(listed("p1_T1", "p1_T2").cases[0])) == [10, 20]
    (finding,) = listed("p1_T2", "p1_T1").findings
    assert (finding.code, finding.severity) == ("exchanged_channels", "error") and "'T2'" in finding.message
    assert means(read_case_image(listed("p1_T1", "x").cases[0])) == [10, 30]  # a name that says nothing
    assert [f.code for f in listed("p1_T1", "p1_T2", "x").findings] == ["missing_channel"]


def test_channels_on_other_grids_are_resampled_and_that_is_said(tmp_path: Path) -> None:
    files = [
        write(scan(10), tmp_path / "a.nii.gz"),
        write(scan(20, (4, 9, 10), (1.0, 1.1, 2.4)), tmp_path / "b.nii.gz"),
    ]
    told: list[ImageWarning] = []
    image = read_channels(files, told.append)
    assert image.GetSize() == (10, 9, 8) and image.GetSpacing() == pytest.approx((1.0, 1.1, 1.2))
    assert means(image) == [10, 20] and [warning.code for warning in told] == ["channels_resampled"]
    far = scan(20)
    far.SetOrigin((500.0, 0.0, 0.0))
    with pytest.raises(InputError) as caught:
        read_channels([files[0], write(far, tmp_path / "c.nii.gz")])
    assert caught.value.code == "channels_apart"
    both = write(sitk.Compose([scan(1), scan(2)]), tmp_path / "d.nii.gz")
    with pytest.raises(InputError) as caught:
        read_channels([files[0], both])
    assert caught.value.code == "wrong_channels"
    assert means(read_channels([both])) == [1, 2]


def test_dicom_series_as_channels(tmp_path: Path) -> None:
    for name in ("T1", "T2"):
        write_series(tmp_path / "images" / "p1" / name)
    write_series(tmp_path / "images" / "p2" / "one series")
    for name in ("p1", "p2"):
        write(mask(), tmp_path / "labels" / f"{name}.nii.gz")
    first, second = find_cases(tmp_path).cases
    assert first.channel_names == ("T1", "T2") and len(first.channels) == 1
    assert second.image.name == "one series" and not second.channels


@pytest.mark.parametrize(
    ("one", "other"), [("T1w", "t1"), ("T1-weighted", "T1"), ("t2f", "FLAIR"), ("t1gd", "T1ce"), ("T1 post", "t1c")]
)
def test_names_of_channels_that_mean_the_same(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


def test_numbers_decide_where_names_say_nothing() -> None:
    files = (Path("a"), Path("b"))
    assert in_order(Scan(files, (), "numbered"), ["x", "y"]) == [0, 1]
    assert in_order(Scan(files, ("y", "x"), "numbered"), ["x", "y"]) == [1, 0]


# What segment takes


@pytest.fixture
def two_channels(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the base model, whose network is not asked here, take two channels."""
    taking_two = replace(load_base_model(bundle), input_channels=("T1", "FLAIR"))
    monkeypatch.setattr(scans, "base_of_model", lambda *_: taking_two)


def planned(model: Path, *inputs: Path, channels: tuple[tuple[str, ...], ...] = ()) -> dict[str, list[str]]:
    """Name the files of each scan by the name of its result."""
    request = SegmentRequest(str(model), tuple(map(str, inputs)), "out", channels=channels)
    tasks = plan_tasks(request)
    return {task.labels.name.removesuffix(".seg.nrrd"): [p.name for p in (task.scan, *task.channels)] for task in tasks}


def test_numbered_channels_of_a_folder_belong_together(bundle: Path, two_channels: None, tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        write(scan(1), tmp_path / "in" / f"{name}.nii.gz")
    found = planned(bundle, tmp_path / "in")
    assert found == {name: [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"] for name in "ab"}
    (tmp_path / "in" / "b_0000.nii.gz").unlink()
    with pytest.raises(InputError, match="'b' has no channel 0000") as caught:
        planned(bundle, tmp_path / "in")
    assert caught.value.code == "missing_channel"


def test_named_channels_of_folders_belong_together(bundle: Path, two_channels: None, tmp_path: Path) -> None:
    for case in ("p1", "p2"):
        for name in ("FLAIR", "T1w"):
            write(scan(1), tmp_path / "in" / case / f"{name}.nii.gz")
    files = ["T1w.nii.gz", "FLAIR.nii.gz"]
    assert planned(bundle, tmp_path / "in") == {"p1": files, "p2": files}
    assert planned(bundle, tmp_path / "in" / "p1") == {"p1": files}


def test_channels_are_given_one_by_one(bundle: Path, two_channels: None, tmp_path: Path) -> None:
    paths = [str(write(scan(1), tmp_path / f"a, b+c_{name}.nii.gz")) for name in ("T1", "FLAIR")]
    assert list(planned(bundle, channels=(tuple(paths),)).values()) == [[Path(path).name for path in paths]]
    with pytest.raises(InputError) as caught:
        planned(bundle, channels=(tuple(paths[::-1]),))
    assert caught.value.code == "exchanged_channels"
    with pytest.raises(InputError) as caught:
        planned(bundle, channels=((paths[0], "nowhere.nii.gz"),))
    assert caught.value.code == "not_found"


def test_numbers_mean_nothing_to_a_model_of_one_channel(bundle: Path, tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001"):
        write(scan(1), tmp_path / "in" / f"{name}.nii.gz")
    assert planned(bundle, tmp_path / "in") == {name: [f"{name}.nii.gz"] for name in ("a_0000", "a_0001")}
    for name in ("a_0000", "b_0000"):
        write(scan(1), tmp_path / "nnU-Net" / f"{name}.nii.gz")
    assert list(planned(bundle, tmp_path / "nnU-Net")) == ["a", "b"]


def test_folders_in_folders_are_scans(bundle: Path, tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for number in range(2):
            write_series(tmp_path / "in" / patient / f"series{number}")
    write_series(tmp_path / "in" / "p3")
    (tmp_path / "in" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    write(scan(1), tmp_path / "in" / "p4" / "t1.nii.gz")
    write(scan(1), tmp_path / "in" / "t1.nrrd")
    found = planned(bundle, tmp_path / "in")
    assert set(found) == {f"p{p}_series{n}" for p in (1, 2) for n in (0, 1)} | {"p3", "p4_t1", "t1"}
    for path in (tmp_path / "in" / "p3").iterdir():
        path.rename(path.with_suffix(""))  # as archives export them
    assert set(planned(bundle, tmp_path / "in" / "p3")) == {"p3"} and set(planned(bundle, tmp_path / "in")) == set(
        found
    )


def test_series_of_a_folder_of_folders_are_segmented(
    bundle: Path, tmp_path: Path, make_scan: Callable[..., Any], recorder: Any
) -> None:
    write_series(tmp_path / "in" / "p1")
    (tmp_path / "in" / "notes.txt").write_text("x")
    events = recorder()
    run_segment(SegmentRequest(str(bundle), (str(tmp_path / "in"),), str(tmp_path / "out")), events)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["p1.seg.nrrd"]
    (told,) = (event for event in events.of("warning") if event["code"] == "files_passed_over")
    assert told["severity"] == "note" and "'notes.txt'" in told["message"]


def test_segmentation_in_place_of_a_scan_is_refused(bundle: Path, tmp_path: Path) -> None:
    slices = write_series(tmp_path / "ct")
    write_rtstruct(tmp_path / "a.dcm", slices, {"liver": []})
    with pytest.raises(InputError, match="RTSTRUCT"):
        run_segment(SegmentRequest(str(bundle), (str(tmp_path / "a.dcm"),), str(tmp_path / "out")), NullEvents())

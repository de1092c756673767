"""nnU-Net's folders and zip files: found, added, refused; nothing in them is executed, and nothing half written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nnunet_reference as nnunet
from nnunet_reference import DATASET, Variant

from tcurlora.cli.commands import main
from tcurlora.errors import InputError
from tcurlora.models import catalogue
from tcurlora.models.kinds import AddOptions, kind_of
from tcurlora.models.nnunet import read_checkpoint
from tcurlora.models.nnunet_files import read_trained, trained_folders
from tcurlora.models.opening import load_base_model

Tree = Callable[[Path], dict[str, bytes | None]]
TINY = Variant(features=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model made by nnU-Net's trainer; only to be read."""
    return nnunet.train(tmp_path_factory.mktemp("made"), TINY)


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy in nnUNet_results, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "nnUNet_results" / DATASET / made.name))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of its own, and no other program's models."""
    for name in ("TOTALSEG_WEIGHTS_PATH", "nnUNet_results", "nnUNet_raw"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path / "no TotalSegmentator"))
    monkeypatch.setenv("TCURLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def configuration(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["configurations"]["3d_fullres"]
    return found


def refused(call: Callable[[], object], code: str = "bad_bundle") -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.code == code, caught.value
    assert caught.value.remedy
    return caught.value


def add(path: Path, **options: str) -> Path:
    fold = options.get("fold", "")
    return catalogue.add_model(
        path,
        lambda folder: load_base_model(folder, fold).build(),
        options.pop("name", None),
        AddOptions(**options),
    )


# Found


@pytest.mark.parametrize("inside", [".", "..", "../..", "../../..", "fold_0", "fold_0/checkpoint_final.pth"])
def test_every_folder_that_leads_to_a_model_opens_it(model: Path, inside: str) -> None:
    base = load_base_model((model / inside).resolve())
    assert (base.name, base.kind, base.channels) == (DATASET, "nnU-Net", ("background", "left", "right"))
    assert base.input_channels == ("MRI",) and base.weights == model / "fold_0" / "checkpoint_final.pth"


def test_of_several_models_the_user_chooses_and_2d_and_cascades_do_not_count(model: Path) -> None:
    for name in ("2d", "3d_cascade_fullres"):
        shutil.copytree(model, model.with_name(f"nnUNetTrainer__nnUNetPlans__{name}"))
    assert load_base_model(model.parent).folder == model
    other = Path(shutil.copytree(model, model.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")))
    error = refused(lambda: load_base_model(model.parent), "several_models")
    assert model.name in error.remedy and other.name in error.remedy


def test_a_folder_tree_without_end_is_not_walked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    assert trained_folders(tmp_path) == []
    assert kind_of(tmp_path) is None


def test_models_of_totalsegmentator_and_nnunet_are_listed_and_used_but_not_touched(
    model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    results = tmp_path / "TotalSegmentator ü" / "nnunet" / "results"
    fast = results / "Dataset297_TotalSegmentator_total_3mm_1559subj" / model.name
    shutil.copytree(model, fast)
    change(fast / "plans.json", lambda content: content.update(dataset_name=fast.parent.name))
    unfinished = results / "Dataset298_TotalSegmentator_total_6mm_1559subj" / model.name
    shutil.copytree(model, unfinished, ignore=shutil.ignore_patterns("*.pth"))
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path / "TotalSegmentator ü"))
    monkeypatch.setenv("nnUNet_results", str(model.parents[1]))
    before = tree(tmp_path)
    found = [entry for entry in catalogue.list_models() if entry["origin"] == "found"]
    assert [(entry["name"], entry["source"]) for entry in found] == [
        (fast.parent.name, "TotalSegmentator"),
        (DATASET, "nnUNet_results"),
    ]
    assert "total --fast" in found[0]["title"] and found[0]["structures"] == ["left", "right"]
    base = load_base_model(fast.parent.name)
    assert base.folder == fast and base.preprocessing.to_dict()["orientation"] == "RAS"
    refused(lambda: catalogue.remove_model(DATASET), "found")
    assert tree(tmp_path) == before


def test_lists_load_neither_torch_nor_simpleitk(model: Path, home: Path) -> None:
    script = (
        "import sys; from tcurlora.models.catalogue import list_models; "
        "assert any(entry['origin'] == 'found' for entry in list_models()); "
        "assert not {'torch', 'monai', 'SimpleITK', 'numpy'} & set(sys.modules)"
    )
    import subprocess

    environment = {**os.environ, "nnUNet_results": str(model.parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)


# Orientation


def test_the_training_scans_say_the_orientation_where_they_are_there(model: Path, home: Path) -> None:
    assert load_base_model(model).notes
    images = model.parents[2] / "nnUNet_raw" / DATASET / "imagesTr"
    images.mkdir(parents=True)
    for number in range(2):
        scan = nnunet.make_scan(number, (8, 8, 8), direction=(-1, 0, 0, 0, 0, 1, 0, 1, 0))[0][0]
        sitk.WriteImage(scan, images / f"case{number}_0000.nii.gz")
    expected = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(scan.GetDirection())
    base = load_base_model(model)
    assert base.preprocessing.to_dict()["orientation"] == expected and not base.notes
    added = add(model)
    shutil.rmtree(images)
    assert load_base_model(added).preprocessing.to_dict()["orientation"] == expected
    assert load_base_model(model).preprocessing.to_dict()["orientation"] is None
    assert load_base_model(add(model, name="as stored", orientation="stored")).preprocessing.to_dict() == {
        **base.preprocessing.to_dict(),
        "orientation": None,
    }


def test_an_orientation_has_three_letters(model: Path, home: Path, tree: Tree) -> None:
    for wrong in ("RAX", "RRS", "north"):
        refused(lambda wrong=wrong: add(model, orientation=wrong), "usage")
    assert not home.exists() or not tree(home)


# Added


def test_an_added_model_is_a_folder_that_nnunet_runs_too(model: Path, home: Path, tmp_path: Path) -> None:
    (model / "fold_0" / "progress.png").write_bytes(b"not needed")
    shutil.copytree(model / "fold_0", model / "fold_1")
    added = add(model)
    inside = added / model.name
    names = sorted(path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file())
    assert names == ["dataset.json", "fold_0/checkpoint_final.pth", "plans.json", "tcurlora.json"]
    assert load_base_model(DATASET).sha256 == load_base_model(model).sha256
    both = add(model, fold="0,1", name="both")
    assert load_base_model(both, "0,1").build() is not None
    refused(lambda: load_base_model(DATASET, "1"), "no_fold")
    refused(lambda: add(model, fold="7", name="none"), "no_fold")


def test_the_command_line_adds_a_zip_as_nnunet_exports_it(model: Path, home: Path, tmp_path: Path) -> None:
    archive = tmp_path / "Modell ü.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in model.rglob("*"):
            opened.write(path, path.relative_to(model.parents[1]))
        opened.writestr(f"{DATASET}/inference_information.txt", "not needed")
    assert main(["models", "add", str(archive)]) == 0
    assert load_base_model(DATASET).build() is not None
    assert sorted(path.name for path in (home / "models").iterdir()) == [DATASET]
    assert refused(lambda: load_base_model(archive), "zip").remedy


def link(archive: zipfile.ZipFile, top: str) -> None:
    info = zipfile.ZipInfo(f"{top}/plans.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


HOSTILE: dict[str, Callable[[zipfile.ZipFile, str], object]] = {
    "a link": link,
    "a way out": lambda archive, top: archive.writestr(f"../{top}/plans.json", "{}"),
    "a way out inside": lambda archive, top: archive.writestr(f"{top}/../../../plans.json", "{}"),
    "an absolute path": lambda archive, top: archive.writestr(f"/{top}/plans.json", "{}"),
    "Windows' separators": lambda archive, top: archive.writestr(f"..\\{top}\\plans.json", "{}"),
    "a bomb": lambda archive, top: archive.writestr(f"{top}/fold_0/checkpoint_final.pth", bytes(64 * 2**20)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_are_refused_and_nothing_is_written(what: str, home: Path, tmp_path: Path, tree: Tree) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        HOSTILE[what](archive, f"{DATASET}/{TINY.folder_name}")
        archive.writestr("other/readme.txt", "")
    before = {path for path in tmp_path.rglob("*") if home not in path.parents and path != home}
    refused(lambda: add(tmp_path / "x.zip"), "unsafe_zip")
    assert {path for path in tmp_path.rglob("*") if home not in path.parents and path != home} == before
    assert not tree(home / "models")


def test_other_zip_files_hold_no_model(home: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("photos/a.jpg", "")
    refused(lambda: add(tmp_path / "x.zip"))
    (tmp_path / "y.zip").write_bytes(b"PK\x03\x04 broken")
    refused(lambda: add(tmp_path / "y.zip"), "unsafe_zip")


# Refused

PLANS: dict[str, Callable[[dict[str, Any]], object]] = {
    "2D": lambda p: configuration(p).update(patch_size=[32, 32]),
    "cascade": lambda p: configuration(p).update(previous_stage="3d_lowres"),
    "circle": lambda p: p["configurations"].update(
        {"3d_fullres": {"inherits_from": "a"}, "a": {"inherits_from": "3d_fullres"}}
    ),
    "no such configuration": lambda p: p.update(configurations={"other": {}}),
    "configurations are a list": lambda p: p.update(configurations=[1]),
    "another network": lambda p: configuration(p)["architecture"].update(
        network_class_name="dynamic_network_architectures.architectures.unet.ResidualUNet"
    ),
    "a function as network": lambda p: configuration(p)["architecture"].update(network_class_name="os.system"),
    "a module of one's own": lambda p: configuration(p)["architecture"].update(network_class_name="evil.PlainConvUNet"),
    "another argument": lambda p: configuration(p)["architecture"]["arch_kwargs"].update(block="os.system"),
    "another import": lambda p: configuration(p)["architecture"]["_kw_requires_import"].append("block"),
    "a function as norm": lambda p: configuration(p)["architecture"]["arch_kwargs"].update(norm_op="os.system"),
    "2D convolutions": lambda p: configuration(p)["architecture"]["arch_kwargs"].update(conv_op="torch.nn.Conv2d"),
    "a million stages": lambda p: configuration(p)["architecture"]["arch_kwargs"].update(n_stages=10**6),
    "a billion features": lambda p: configuration(p)["architecture"]["arch_kwargs"].update(features_per_stage=10**9),
    "text as size": lambda p: configuration(p)["architecture"]["arch_kwargs"].update(kernel_sizes="3"),
    "no patch": lambda p: configuration(p).pop("patch_size"),
    "absurd patch": lambda p: configuration(p).update(patch_size=[10**9, 16, 16]),
    "spacing of zero": lambda p: configuration(p).update(spacing=[0, 1, 1]),
    "spacing of infinity": lambda p: configuration(p).update(spacing=[float("inf"), 1, 1]),
    "another normalization": lambda p: configuration(p).update(normalization_schemes=["Own"]),
    "no normalization": lambda p: configuration(p).update(normalization_schemes=[]),
    "CT without intensities": lambda p: (
        configuration(p).update(normalization_schemes=["CTNormalization"]),
        p.pop("foreground_intensity_properties_per_channel"),
    ),
    "another resampling": lambda p: configuration(p).update(resampling_fn_data="no_resampling_data_or_seg_to_shape"),
    "arguments of resampling": lambda p: configuration(p)["resampling_fn_data_kwargs"].update(order="3"),
    "transpose": lambda p: p.update(transpose_forward=[0, 0, 1]),
    "transpose that is not undone": lambda p: p.update(transpose_backward=[2, 1, 0]),
    "another preprocessor": lambda p: configuration(p).update(preprocessor_name="Own"),
    "another label manager": lambda p: p.update(label_manager="Own"),
}
DATASETS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no labels": lambda d: d.pop("labels"),
    "labels as a list": lambda d: d.update(labels=["background", "left"]),
    "no background": lambda d: d["labels"].pop("background"),
    "label that is text": lambda d: d["labels"].update(left="1"),
    "label that is missing": lambda d: d["labels"].update(right=3),
    "negative label": lambda d: d["labels"].update(right=-2),
    "regions without order": lambda d: d["labels"].update(right=[1, 2]),
    "order of too few": lambda d: (d["labels"].update(right=[1, 2]), d.update(regions_class_order=[1])),
    "no channels": lambda d: d.pop("channel_names"),
    "channels that are not numbered": lambda d: d.update(channel_names={"1": "T1"}),
}


@pytest.mark.parametrize("what", PLANS)
def test_plans_that_cannot_be_followed_are_refused(model: Path, what: str) -> None:
    change(model / "plans.json", PLANS[what])
    refused(lambda: load_base_model(model))


@pytest.mark.parametrize("what", DATASETS)
def test_datasets_that_make_no_sense_are_refused(model: Path, what: str) -> None:
    change(model / "dataset.json", DATASETS[what])
    refused(lambda: load_base_model(model))


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").hex()])
@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_damaged_json_is_refused_and_does_not_hide_the_list(
    model: Path, home: Path, file: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / file).write_text(content)
    refused(lambda: load_base_model(model))
    monkeypatch.setenv("nnUNet_results", str(model.parents[1]))
    assert DATASET not in [entry["name"] for entry in catalogue.list_models()]


def test_inherited_configurations_are_read(model: Path) -> None:
    def inherit(content: dict[str, Any]) -> None:
        base = content["configurations"].pop("3d_fullres")
        content["configurations"] = {"base": base, "3d_fullres": {"inherits_from": "base", "patch_size": [8, 16, 32]}}

    change(model / "plans.json", inherit)
    assert load_base_model(model).windows.roi_size == (8, 16, 32)


def test_a_renamed_folder_is_taken_where_there_is_one_configuration(model: Path) -> None:
    renamed = model.rename(model.with_name("my model"))
    assert load_base_model(renamed).build() is not None
    change(renamed / "plans.json", lambda p: p["configurations"].update({"3d_lowres": configuration(p)}))
    refused(lambda: load_base_model(renamed))


# Checkpoints


class Marks:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def resave(model: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    edit(content)
    torch.save(content, file)


def test_nothing_in_a_checkpoint_is_executed(model: Path, home: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    resave(model, lambda content: content.update(logging=Marks(mark)))
    refused(lambda: load_base_model(model).build(), "bad_weights")
    file = model / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(pickle.dumps(Marks(mark)))
    refused(lambda: load_base_model(model).build(), "bad_weights")
    assert main(["models", "add", str(model)]) == 2
    assert not mark.exists()
    assert not list((home / "models").glob("*")) if home.exists() else True


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_either_numpy_are_read_over(model: Path, module: str) -> None:
    file = model / "fold_0" / "checkpoint_final.pth"
    resave(
        model, lambda content: content.update(_best_ema=np.float64(0.5), logging={"a": [np.float32(1), np.int64(2)]})
    )
    with zipfile.ZipFile(file) as opened:
        parts = {info.filename: opened.read(info) for info in opened.infolist()}
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in parts.items():
            for own in ("numpy._core.multiarray", "numpy.core.multiarray"):
                content = content.replace(f"c{own}\n".encode(), f"c{module}\n".encode())
            opened.writestr(name, content)
    assert load_base_model(model).build() is not None


def test_prefixes_of_compiled_and_parallel_networks_are_left_out(model: Path) -> None:
    expected = load_base_model(model).build().state_dict()

    def prefix(content: dict[str, Any]) -> None:
        weights = content["network_weights"]
        content["network_weights"] = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}

    resave(model, prefix)
    found = load_base_model(model).build().state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def enormous(content: dict[str, Any]) -> None:
    content["network_weights"]["encoder.enormous"] = torch.zeros(1).expand(10**12)


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "of another configuration": (lambda c: c["init_args"].update(configuration="3d_lowres"), "bad_bundle"),
    "without weights": (lambda c: c.pop("network_weights"), "bad_weights"),
    "with text for weights": (lambda c: c.update(network_weights={"encoder.a": "text"}), "bad_weights"),
    "with a number that is none": (
        lambda c: c["network_weights"]["decoder.seg_layers.1.bias"].fill_(float("nan")),
        "bad_weights",
    ),
    "with numbers that are not there": (enormous, "bad_weights"),
    "with a weight too few": (lambda c: c["network_weights"].pop("decoder.seg_layers.1.bias"), "bad_bundle"),
    "with a weight too many": (
        lambda c: c["network_weights"].update({"encoder.attention.weight": torch.zeros(2)}),
        "bad_bundle",
    ),
    "of another network": (
        lambda c: c["network_weights"].update({"decoder.seg_layers.1.weight": torch.zeros(5, 2, 1, 1, 1)}),
        "bad_bundle",
    ),
    "with axes that are none": (lambda c: c.update(inference_allowed_mirroring_axes=(5,)), ""),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_checkpoints_that_do_not_fit_are_refused(model: Path, what: str) -> None:
    edit, code = CHECKPOINTS[what]
    resave(model, edit)
    if code:
        refused(lambda: load_base_model(model).build(), code)
    else:
        load_base_model(model).build()
        refused(lambda: load_base_model(model).mirror_axes)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_checkpoints_are_refused(model: Path, kept: float) -> None:
    file = model / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    refused(lambda: load_base_model(model).build(), "bad_weights")


def test_a_packed_checkpoint_that_unpacks_to_much_is_refused(model: Path) -> None:
    file = model / "fold_0" / "checkpoint_final.pth"
    with zipfile.ZipFile(file) as opened:
        parts = {info.filename: opened.read(info) for info in opened.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in parts.items():
            opened.writestr(name, content + (bytes(32 * 2**20) if name.endswith("data/0") else b""))
    refused(lambda: read_checkpoint(file), "bad_weights")


def test_a_network_larger_than_its_weights_is_not_made(model: Path) -> None:
    change(
        model / "plans.json",
        lambda p: configuration(p)["architecture"]["arch_kwargs"].update(features_per_stage=[2, 8192, 8192]),
    )
    refused(lambda: load_base_model(model).build())


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    base = load_base_model(model)  # its description is there without it
    error = refused(base.build, "missing_package")
    assert "pip install --no-deps dynamic-network-architectures" in error.remedy
    assert main(["models", "add", str(model)]) == 2
    assert not list((home / "models").glob("*")) if home.exists() else True


def test_windows_must_suit_the_network(model: Path) -> None:
    change(model / "plans.json", lambda p: configuration(p).update(patch_size=[15, 16, 16]))
    refused(lambda: load_base_model(model).build())


def test_a_bundle_has_no_folds(bundle: Path, home: Path) -> None:
    refused(lambda: load_base_model(bundle, "1"), "no_fold")
    refused(lambda: catalogue.add_model(bundle, lambda _: None, None, AddOptions(orientation="RAS")), "no_fold")


def test_trained_models_keep_what_they_say(made: Path) -> None:
    trained = read_trained(made)
    assert (trained.trainer, trained.configuration, trained.folds) == ("nnUNetTrainer", "3d_fullres", ("0",))
    assert trained.values == (0, 1, 2) and not trained.regions

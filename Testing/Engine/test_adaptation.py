"""Adaptation: what it proves, what it leaves behind, and that a run broken off anywhere ends like an unbroken one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tcurlora.cases.case import Case
from tcurlora.errors import InputError, MemoryExhausted
from tcurlora.inference.segmenter import Segmenter
from tcurlora.models.adapter_files import load_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.runtime import atomic_files as whole_files
from tcurlora.runtime.events import NullEvents
from tcurlora.runtime.job_folder import JobFolder
from tcurlora.training import adaptation
from tcurlora.training import trainer as training
from tcurlora.training.adaptation import AdaptRequest, run_adapt
from tcurlora.training.presets import preset, training_settings
from tcurlora.training.target_site import fold_cases, open_site

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "report.json"}


@pytest.fixture(autouse=True, scope="module")
def frequent_checkpoints() -> Iterator[None]:
    original = adaptation.training_settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            adaptation, "training_settings", lambda method, seed=0: replace(original(method, seed), check_every=2)
        )
        yield


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("Arbeit 作業")


@pytest.fixture(scope="module")
def request_for(bundle: Path, site: Path) -> Callable[..., AdaptRequest]:
    def make(out: Path, **changes: Any) -> AdaptRequest:
        return AdaptRequest(**{"base": str(bundle), "data": str(site), "out": str(out), "steps": 5, **changes})

    return make


@pytest.fixture(scope="module")
def finished(workplace: Path, request_for: Callable[..., AdaptRequest]) -> Path:
    """An adapter made without a break."""
    out = workplace / "adapter"
    run_adapt(request_for(out), workplace / "job", NullEvents())
    return out


def report_of(adapter: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((adapter / "report.json").read_text(encoding="utf-8"))
    report["training"].pop("minutes")
    return report


def assert_same_adapter(a: Path, b: Path) -> None:
    assert {path.name for path in a.iterdir()} == FILES
    assert (a / "adapter_model.safetensors").read_bytes() == (b / "adapter_model.safetensors").read_bytes()
    assert report_of(a) == report_of(b)


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial" in path.name or path.suffix == ".tmp"]


def test_adapter_is_whole_and_helps_scans_it_never_saw(finished: Path, workplace: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    report = report_of(finished)
    assert report["summary"].startswith("On your 4 scans of 2 subjects the adapter raises hippocampus Dice from 0.7")
    comparison = report["cross_validation"]["comparison"]["mean"]
    assert comparison["n"] == 4 and comparison["improved"] == 4 and comparison["dice_difference"] > 0.03
    assert report["summary"] in (finished / "README.md").read_text(encoding="utf-8")
    result = json.loads((workplace / "job" / "result.json").read_text(encoding="utf-8"))
    assert result["summary"] == report["summary"]
    assert result["bytes"] == (finished / "adapter_model.safetensors").stat().st_size
    assert report["size"]["adapter_bytes"] == result["bytes"]
    assert result["trained"] == report["size"]["trained_numbers"]
    assert "Dice base" in result["table"] and "Dice adapted" in result["table"]
    assert not leftovers(workplace)


def test_adapter_names_neither_scans_nor_folders(finished: Path, site: Path, workplace: Path) -> None:
    for path in finished.iterdir():
        content = path.read_bytes()
        for secret in ("scan1", "subject1", str(site), str(workplace), str(Path.home())):
            assert secret.encode() not in content, (path.name, secret)


def test_folds_hold_out_whole_subjects(finished: Path) -> None:
    folds = report_of(finished)["cross_validation"]["folds"]
    assert sorted(fold["cases"] for fold in folds) == [["case 01", "case 03"], ["case 02", "case 04"]]


def test_base_is_scored_as_the_plain_base_scores(finished: Path, bundle: Path, site: Path) -> None:
    base = load_base_model(bundle)
    plain = Segmenter.of_base(base, CPU)
    scores = report_of(finished)["cross_validation"]["base"]["cases"]
    for number, score in enumerate(sorted(scores, key=lambda s: s["case"]), start=1):
        image = sitk.ReadImage(site / "images" / f"scan{number}.nii.gz")
        prepared = base.preprocessing.prepare(image)
        background, anterior, posterior = plain.probabilities(prepared.array)
        predicted = anterior + posterior > background
        truth = sitk.ReadImage(site / "labels" / f"scan{number}.nii.gz")
        expected = base.preprocessing.prepare_labels(truth, prepared) == 1
        dice = 2 * (predicted & expected).sum() / (predicted.sum() + expected.sum())
        assert score["dice"] == pytest.approx(dice, abs=1e-6) and dice > 0.5


def test_adapter_on_disk_is_the_one_that_was_trained(finished: Path, bundle: Path) -> None:
    base = load_base_model(bundle)
    model = load_adapter(base.build(), finished)
    assert [channel.name for channel in model.config.channels or ()] == ["background", "hippocampus", "hippocampus"]
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(model.merged().eval()(x), base.build()(x), atol=1e-3)


@pytest.mark.parametrize(("stage", "step"), [("fold-1", 3), ("fold-2", 5), ("train", 4)])
def test_broken_off_and_resumed_gives_the_same_adapter(
    finished: Path, workplace: Path, request_for: Any, recorder: Any, stage: str, step: int
) -> None:
    place = workplace / f"broken in {stage}"
    out, job = place / "adapter", place / "job"
    current = [""]

    def stop(kind: str, fields: dict[str, Any]) -> bool:
        current[0] = fields["name"] if kind == "stage" else current[0]
        return kind == "progress" and current[0] == stage and fields["step"] == step

    with pytest.raises(KeyboardInterrupt):
        run_adapt(request_for(out, name="adapter"), job, recorder(stop))
    assert not out.exists()
    events = recorder()
    run_adapt(request_for(out, name="adapter"), job, events, resume=True)
    assert_same_adapter(out, finished)
    assert not leftovers(place)
    stages = [event["name"] for event in events.of("stage")]
    assert ("fold-1" in stages) == (stage == "fold-1")  # what was done is not done again
    steps = [fields["step"] for kind, fields in events.events if kind == "progress"][4:]
    assert steps[0] == {"fold-1": 3, "fold-2": 5, "train": 3}[stage]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_saving_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    original, calls = training.save_file, []

    def save(tensors: Any, path: Path, **options: Any) -> None:
        original(tensors, path, **options)
        calls.append(path)
        if len(calls) == 5:
            path.write_bytes(path.read_bytes()[:50])
            die()

    patch.setattr(training, "save_file", save)


def kill_before_the_adapter_gets_its_name(patch: pytest.MonkeyPatch) -> None:
    original = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "adapter":
            die()
        original(source, target)

    patch.setattr(whole_files.os, "replace", replace)


def kill_while_caching(patch: pytest.MonkeyPatch) -> None:
    original, calls = np.save, []

    def save(path: Path, array: Any) -> None:
        calls.append(array)
        if len(calls) == 4:
            path.write_bytes(b"half")
            die()
        original(path, array)

    patch.setattr(np, "save", save)


KILLS = [
    kill_while_caching,
    kill_while_saving_a_checkpoint,
    kill_before_the_adapter_gets_its_name,
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.__name__)
def test_killed_and_resumed_gives_the_same_adapter(
    finished: Path, workplace: Path, request_for: Any, kill: Callable[[pytest.MonkeyPatch], None]
) -> None:
    place = workplace / kill.__name__
    request = request_for(place / "adapter", name="adapter")
    child = os.fork()
    if child == 0:
        try:
            kill(pytest.MonkeyPatch())
            run_adapt(request, place / "job", NullEvents())
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not (place / "adapter").exists()
    run_adapt(request, place / "job", NullEvents(), resume=True)
    assert_same_adapter(place / "adapter", finished)
    assert not leftovers(place)


def test_stopped_between_adapter_and_result_ends_whole(
    workplace: Path, request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = workplace / "late"
    request = request_for(place / "adapter", folds=0)
    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_adapt(request, place / "job", NullEvents())
    before = (place / "adapter" / "adapter_model.safetensors").read_bytes()
    summary = run_adapt(request, place / "job", NullEvents(), resume=True)
    assert (place / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert json.loads((place / "job" / "result.json").read_text()) == summary
    with pytest.raises(InputError, match="other options: --seed"):
        run_adapt(replace(request, seed=9), place / "job", NullEvents(), resume=True)


def test_too_little_memory_for_the_window_goes_on_with_smaller_patches(
    tmp_path: Path, make_bundle: Callable[..., Path], request_for: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, train = make_bundle(tmp_path / "large windows"), adaptation.train
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["inferer"]["roi_size"] = [64, 64, 16]
    config.write_text(json.dumps(content), encoding="utf-8")

    def train_small(model: Any, cases: Any, groups: Any, patch: Any, *rest: Any) -> Any:
        if max(patch) > 32:
            raise MemoryExhausted("The computer ran out of memory.")
        return train(model, cases, groups, patch, *rest)

    monkeypatch.setattr(adaptation, "train", train_small)
    events, out = recorder(), tmp_path / "adapter"
    run_adapt(replace(request_for(out), base=str(bundle), steps=1, folds=0), tmp_path / "job", events)
    messages = [event["message"] for event in events.of("warning") if event.get("code") == "smaller_patches"]
    assert messages == ["Memory ran out with patches of 64 x 64 x 16 voxels; going on with 32 x 32 x 16."]
    config_of_adapter = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config_of_adapter["training"]["patch"] == "32 x 32 x 16"
    assert config_of_adapter["preprocessing"]["roi_size"] == [64, 64, 16]
    monkeypatch.setattr(load_base_model(bundle).__class__, "takes_window", lambda *_: False)
    with pytest.raises(MemoryExhausted):
        run_adapt(replace(request_for(tmp_path / "b"), base=str(bundle), steps=1, folds=0), tmp_path / "j", events)


def test_minutes_are_turned_into_steps_once(workplace: Path, request_for: Any, recorder: Any) -> None:
    place = workplace / "minutes"
    request = request_for(place / "adapter", steps=None, minutes=0.005, folds=0)
    with pytest.raises(KeyboardInterrupt):
        run_adapt(request, place / "job", recorder(lambda kind, fields: kind == "progress" and "loss" in fields))
    job = JobFolder(place / "job")
    remembered = job.remembered("plan")
    assert 2 <= remembered["steps"] < 30
    job.remember("plan", {**remembered, "steps": 3})
    events = recorder()
    run_adapt(request, place / "job", events, resume=True)
    assert [(e["step"], e["total"]) for e in events.of("progress") if "loss" in e] == [(1, 3), (2, 3), (3, 3)]
    report = report_of(place / "adapter")
    assert report["training"]["steps"] == 3
    assert report["cross_validation"] is None and "was not compared" in report["summary"]
    (plan,) = (event for event in events.of("stage") if event["name"] == "plan")
    assert (plan["steps"], plan["trainings"]) == (3, 1)
    assert plan["seconds_per_step"] == remembered["seconds_per_step"] > 0
    assert plan["seconds"] == pytest.approx(3 * plan["seconds_per_step"] / 0.75, abs=0.1)
    assert plan["peak_bytes"] > 2 * 16**3 * 4 * 4  # the first features of two patches


def test_curves_are_told_for_each_training(workplace: Path, request_for: Any, recorder: Any) -> None:
    events = recorder()
    run_adapt(request_for(workplace / "curves", folds=2, steps=4), workplace / "curves.job", events)
    trainings = [e["training"] for e in events.of("progress") if "loss" in e]
    assert trainings == [1] * 4 + [2] * 4 + [0] * 4
    metrics = events.of("metric")
    checks = [(e["training"], e["step"]) for e in metrics if e["name"] == "monitor_loss"]
    assert checks == [(t, step) for t in (1, 2, 0) for step in (2, 4)]
    losses = [e for e in metrics if e["name"] == "loss"]
    assert {e["training"] for e in losses} == {0, 1, 2} and all(1 <= e["step"] <= 4 for e in losses)
    curve = report_of(workplace / "curves")["training"]["curve"]
    final = [e["value"] for e in metrics if e["name"] == "monitor_loss" and e["training"] == 0]
    np.testing.assert_allclose(final, [point["monitor_loss"] for point in curve], atol=1e-4)


def test_quick_steps_do_not_flood(
    workplace: Path, request_for: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SECONDS_BETWEEN_LOSSES", 1000.0)
    events = recorder()
    run_adapt(request_for(workplace / "few", folds=0, steps=4), workplace / "few.job", events)
    assert [e["step"] for e in events.of("metric") if e["name"] == "loss"] == [1]


def test_seed_decides(finished: Path, workplace: Path, request_for: Any) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 1)):
        run_adapt(request_for(workplace / name, folds=0, seed=seed), workplace / f"{name}.job", NullEvents())
        weights.append((workplace / name / "adapter_model.safetensors").read_bytes())
    # The final adapter does not depend on whether a cross-validation came before it.
    assert weights[0] == (finished / "adapter_model.safetensors").read_bytes()
    assert weights[1] != weights[0]


def test_adapter_that_does_not_help_says_so_first(
    workplace: Path, request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "learning_rate_factor", lambda *_: 0.0)
    out = workplace / "useless"
    summary = run_adapt(request_for(out, steps=1), workplace / "useless.job", NullEvents())
    assert summary["summary"].startswith("The adapter does not help on your 4 scans")
    assert summary["summary"].endswith("Keep using the base model.")
    report = report_of(out)
    assert report["cross_validation"]["base"] == report["cross_validation"]["adapted"]
    card = (out / "README.md").read_text(encoding="utf-8").splitlines()
    assert next(line for line in card[1:] if line) == summary["summary"]


def test_structure_that_the_base_never_saw_is_learned(
    workplace: Path, make_site: Callable[..., Path], request_for: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a network learns a new structure at a high learning rate only.
    fast = training_settings("compact")
    monkeypatch.setattr(adaptation, "training_settings", lambda *_: replace(fast, lr_core=0.1, lr_whole=0.1))
    data = make_site(workplace / "new site", names={"background": "0", "Mandelkern": "1"})
    out, events = workplace / "new", recorder()
    request = request_for(out, data=str(data), folds=0, steps=40)
    run_adapt(request, workplace / "new.job", events)
    assert any("does not know 'Mandelkern'" in event["message"] for event in events.of("warning"))
    site = open_site(request.base, request.data)
    model = load_adapter(site.base.build(), out)
    assert [channel.source for channel in model.config.channels or ()] == [0, 1, 2, None]
    dice = []
    for each in (adaptation.TensorCurModel(site.base.build(), model.config), model):
        scores = adaptation.score_cases(site.segmenter(each, CPU), site.dataset.cases[:2], site.structures)
        dice.append(np.mean([score.dice for score in scores]))
    assert dice[0] < 0.1 and dice[1] > 0.5


def test_labels_that_slicer_cropped_count_in_full(
    finished: Path, workplace: Path, site: Path, request_for: Any
) -> None:
    from tcurlora.imaging.segmentations import write_segmentation
    from tcurlora.imaging.structures import Structure

    data = workplace / "Klinik Süd 病院"
    shutil.copytree(site, data)
    for path in sorted((data / "labels").iterdir()):
        labels = sitk.ReadImage(path)
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(labels)
        x, y, z, *size = shape.GetBoundingBox(1)
        cropped = sitk.RegionOfInterest(labels, size, (x, y, z))
        path.unlink()
        write_segmentation(cropped, [Structure("hippocampus", 1)], path.with_name(path.name[:5] + ".seg.nrrd"))
    run_adapt(request_for(workplace / "cropped", data=str(data), name="adapter"), workplace / "c.job", NullEvents())
    assert_same_adapter(workplace / "cropped", finished)


def test_unknown_problem_of_a_case_stops_before_anything_is_written(
    workplace: Path, site: Path, request_for: Any, tree: Any
) -> None:
    place = workplace / "problems"
    data = place / "data"
    shutil.copytree(site, data)
    image = sitk.ReadImage(data / "images" / "scan1.nii.gz")
    sitk.WriteImage(image * 0, data / "images" / "scan1.nii.gz")
    (data / "labels" / "scan3.nii.gz").write_bytes(b"no image")
    before = tree(place)
    with pytest.raises(InputError) as caught:
        run_adapt(request_for(place / "adapter", data=str(data)), place / "job", NullEvents())
    assert "2 problem(s)" in str(caught.value)
    assert "scan1" in str(caught.value) and "scan3" in str(caught.value)
    assert tree(place) == before


@pytest.mark.parametrize("job", ["adapter", "adapter/job"])
def test_job_in_the_place_of_the_adapter_is_refused_at_once(tmp_path: Path, request_for: Any, job: str) -> None:
    with pytest.raises(InputError, match="--job"):
        run_adapt(request_for(tmp_path / "adapter"), tmp_path / job, NullEvents())
    assert not list(tmp_path.iterdir())


def test_changed_scan_is_noticed_on_resume(workplace: Path, site: Path, request_for: Any, recorder: Any) -> None:
    place = workplace / "changed"
    shutil.copytree(site, place / "data")
    request = request_for(place / "adapter", data=str(place / "data"))
    with pytest.raises(KeyboardInterrupt):
        run_adapt(request, place / "job", recorder(lambda kind, fields: kind == "progress"))
    image = place / "data" / "images" / "scan2.nii.gz"
    sitk.WriteImage(sitk.ReadImage(image) + 1, image)
    with pytest.raises(InputError, match=r"has changed since: scan2\.nii\.gz"):
        run_adapt(request, place / "job", NullEvents(), resume=True)
    with pytest.raises(InputError, match="other options: --steps"):
        run_adapt(replace(request, steps=6), place / "job", NullEvents(), resume=True)
    assert JobFolder(place / "job").path.exists()


def swap_names(data: Path, _base: Path) -> None:
    (data / "dataset.json").write_text(json.dumps({"labels": {"1": "amygdala", "2": "hippocampus"}}))


def name_beside(data: Path, _base: Path) -> None:
    (data / "labels" / "scan1.ctbl").write_text("1 amygdala 1 2 3 255\n2 hippocampus 1 2 3 255\n")


def give_to_another_subject(data: Path, _base: Path) -> None:
    names = sorted({path.name.partition(".")[0] for path in (data / "images").iterdir()})
    rows = [f"{name},{'x' if name == 'scan1' else name}" for name in names]
    (data / "cases.csv").write_text("\n".join(["file,subject", *rows]) + "\n", encoding="utf-8")


def change_voxels_beside_header(data: Path, _base: Path) -> None:
    voxels = data / "images" / "scan4.img"
    voxels.write_bytes(voxels.read_bytes() + b"x")


def change_spacing_of_base(_data: Path, base: Path) -> None:
    config = base / "configs" / "inference.json"
    config.write_text(config.read_text(encoding="utf-8").replace("1.0", "2.0"), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_names, "structures"),
        (name_beside, "scan1.ctbl"),
        (give_to_another_subject, "cases"),
        (change_voxels_beside_header, "scan4.img"),
        (change_spacing_of_base, "inference.json"),
    ],
)
def test_whatever_the_cache_was_made_from_is_noticed_on_resume(
    tmp_path: Path,
    bundle: Path,
    make_site: Callable[..., Path],
    request_for: Any,
    recorder: Any,
    change: Callable[[Path, Path], None],
    named: str,
) -> None:
    data, base = make_site(tmp_path / "data", names={"1": "hippocampus", "2": "amygdala"}), tmp_path / "base"
    shutil.copytree(bundle, base)
    for part in ("images", "labels"):
        whole = data / part / "scan4.nii.gz"
        sitk.WriteImage(sitk.ReadImage(whole), data / part / "scan4.hdr")
        whole.unlink()
    request = request_for(tmp_path / "adapter", data=str(data), base=str(base), folds=0)
    with pytest.raises(KeyboardInterrupt):
        run_adapt(request, tmp_path / "job", recorder(lambda kind, fields: kind == "progress"))
    change(data, base)
    with pytest.raises(InputError) as caught:
        run_adapt(request, tmp_path / "job", NullEvents(), resume=True)
    assert caught.value.code == "other_job" and named in caught.value.message


def test_cached_cases_bear_no_names(workplace: Path, request_for: Any, recorder: Any) -> None:
    place = workplace / "cache"
    with pytest.raises(KeyboardInterrupt):
        run_adapt(
            request_for(place / "a"), place / "job", recorder(lambda kind, f: kind == "stage" and f["name"] == "plan")
        )
    cached = [path.name for path in (place / "job" / "cache").iterdir()]
    assert len(cached) == 16 and not any("scan" in name for name in cached)


def test_paper_preset_trains_the_decoder_and_says_when_there_is_none(bundle: Path, site: Path) -> None:
    opened = open_site(str(bundle), str(site))
    network = opened.base.build()
    decoder = opened.config(network, "decoder")
    assert decoder.kinds == () and decoder.modules_to_save
    with pytest.raises(InputError, match="no method 'magic'"):
        opened.config(network, "magic")
    with pytest.raises(InputError, match=r"decoder of Sequential is not known.*compact"):
        preset("paper", torch.nn.Sequential())


def cases_of(*subjects: str) -> list[Case]:
    return [Case(f"{s}-{i}", Path("i"), Path("l"), s) for i, s in enumerate(subjects)]


def test_folds_keep_a_subject_together_and_use_every_case_once() -> None:
    cases = cases_of(*"aabbbcdefghh")
    folds = fold_cases(cases, None, seed=0)
    assert len(folds) == 3
    assert sorted(c.name for fold in folds for c in fold) == sorted(c.name for c in cases)
    for subject in "abcdefgh":
        assert sum(any(c.subject == subject for c in fold) for fold in folds) == 1
    sizes = sorted(len({c.subject for c in fold}) for fold in folds)
    assert sizes == [2, 3, 3]
    assert fold_cases(cases, None, seed=0) == folds != fold_cases(cases, None, seed=1)


@pytest.mark.parametrize(
    ("subjects", "folds", "expected"),
    [
        ("abcde", None, 5),
        ("aabbcc", None, 3),
        ("aabbccddee", None, 3),
        ("abcdef", None, 3),
        ("abcdef", 6, 6),
        ("abc", 10, 3),
        ("abcdef", 0, 0),
        ("abcdef", 1, 0),
        ("aaaa", None, 0),
    ],
)
def test_number_of_folds(subjects: str, folds: int | None, expected: int) -> None:
    assert len(fold_cases(cases_of(*subjects), folds, 0)) == expected

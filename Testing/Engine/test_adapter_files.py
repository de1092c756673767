"""Adapters on disk: the same output after loading, nothing but what the base lacks, and no damaged file taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, DynUNet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tcurlora.errors import InputError, TCurLoraError
from tcurlora.imaging.structures import Structure
from tcurlora.method.channels import Channel
from tcurlora.method.config import TensorCurConfig
from tcurlora.method.model import TensorCurModel, adapt
from tcurlora.models.adapter_files import (
    CARD,
    CONFIG,
    REPORT,
    WEIGHTS,
    load_adapter,
    new_folder,
    read_adapter_structures,
    save_adapter,
)
from tcurlora.training.presets import preset


def unetr(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return UNETR(1, 3, (32, 16, 16), feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2).eval()


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(6, 6, 1), nn.Conv3d(6, 2, 1)).eval()


def fill(model: TensorCurModel) -> TensorCurModel:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def output_of(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small adapter of `small_network`."""
    folder = tmp_path / "adapter"
    save_adapter(fill(adapt(small_network(), TensorCurConfig(r=2, head="2"))), folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**content, **changes}), encoding="utf-8")


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Write other tensors with a hash that fits, as a faulty program could."""
    state = {**load_file(folder / WEIGHTS), **{name.replace("_", "."): value for name, value in changes.items()}}
    save_file({name: value for name, value in state.items() if value is not None}, folder / WEIGHTS)
    edit_config(folder, weights_sha256=None)


def refusal_of(folder: Path, network: nn.Module | None = None) -> InputError:
    with pytest.raises(InputError) as refusal:
        load_adapter(network or small_network(), folder)
    assert refusal.value.exit_code == 2
    assert refusal.value.remedy
    return refusal.value


CHANNELS = (Channel("background", 0), Channel("h", 1), Channel("h", 2), Channel("new", None))


@pytest.mark.parametrize(
    "change", [{}, {"factors": "raw"}, {"selection": "random", "seed": 3}, {"channels": CHANNELS}, {"alpha": 0.25}]
)
def test_saved_and_loaded_is_the_same_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    network, image = unetr(), torch.randn(1, 1, 32, 16, 16)
    expected = output_of(network, image)
    model = fill(adapt(network, preset("compact", network, head="out.conv.conv", **change)))
    adapted = output_of(model, image)
    folder = tmp_path / "Müller 海馬" / "an adapter"
    save_adapter(model, folder)
    loaded = load_adapter(unetr(), folder).eval()
    assert torch.equal(output_of(loaded, image), adapted)
    assert adapted.shape != expected.shape or not torch.allclose(adapted, expected, atol=1e-3)
    assert loaded.config == model.config
    assert all(torch.equal(value, model.trained_state()[name]) for name, value in loaded.trained_state().items())
    # Loaded again it can be trained on, from where it was.
    assert loaded.trained_counts() == model.trained_counts()
    loaded(image).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters() if p.requires_grad)


def dynunet() -> nn.Module:
    torch.manual_seed(4)
    return DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 12)).eval()


@pytest.mark.parametrize(
    ("method", "make", "head"),
    [
        ("paper", unetr, "out.conv.conv"),
        ("decoder", dynunet, "output_block.conv.conv"),
        ("full", dynunet, "output_block.conv.conv"),
    ],
)
def test_other_presets_are_saved_and_loaded_bit_for_bit(
    tmp_path: Path, method: str, make: Callable[[], nn.Module], head: str
) -> None:
    network, image = make(), torch.randn(1, 1, 32, 16, 16)
    model = fill(adapt(network, preset(method, network, head=head)))
    save_adapter(model, tmp_path / "a")
    assert torch.equal(output_of(load_adapter(network, tmp_path / "a").eval(), image), output_of(model, image))


def test_a_compact_adapter_holds_only_index_sets_cores_and_head(tmp_path: Path) -> None:
    network = unetr()
    model = adapt(network, preset("compact", network, head="out.conv.conv"))
    save_adapter(model, tmp_path / "a")
    with safe_open(tmp_path / "a" / WEIGHTS, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        kinds = {name: file.get_tensor(name).dtype for name in shapes}
    expected: dict[str, tuple[int, ...]] = {
        "whole.out.conv.conv.weight": (3, 4, 1, 1, 1),
        "whole.out.conv.conv.bias": (3,),
    }
    for i, stack in enumerate(model.stacks):
        n, r = stack.spec.depth, min(4, *stack.spec.shape)
        expected |= {f"rows.{i}": (r,), f"columns.{i}": (r,), f"core.{i}": (n, r, r)}
    assert shapes == expected
    assert {kind for name, kind in kinds.items() if name.startswith(("core", "whole"))} == {torch.float32}
    base_bytes = 4 * sum(p.numel() for p in network.parameters())
    numbers = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert (tmp_path / "a" / WEIGHTS).stat().st_size < 8 * numbers + 100 * len(shapes) + 100 < base_bytes / 10


def test_the_four_files(tmp_path: Path) -> None:
    model = adapt(small_network(), TensorCurConfig(r=2))
    details = {"base_model": {"name": "a base", "sha256": "0" * 64}, "structures": [{"name": "海馬", "value": 1}]}
    save_adapter(model, tmp_path / "a", details, {"summary": "It helps."}, "# Karte für Ärzte\n")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted([CONFIG, WEIGHTS, REPORT, CARD])
    content = json.loads((tmp_path / "a" / CONFIG).read_text(encoding="utf-8"))
    assert content["peft_type"] == "TCURLORA"
    assert content["structures"] == details["structures"]
    assert content["base_model"]["name"] == "a base"
    assert json.loads((tmp_path / "a" / REPORT).read_text(encoding="utf-8")) == {"summary": "It helps."}
    assert (tmp_path / "a" / CARD).read_text(encoding="utf-8") == "# Karte für Ärzte\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_another_base_is_refused(saved: Path) -> None:
    edit_config(saved, base_model={**json.loads((saved / CONFIG).read_text())["base_model"], "name": "hippocampus"})
    load_adapter(small_network(), saved)
    other = small_network()
    with torch.no_grad():
        other[1].weight[0, 0] += 1e-6
    for network in (other, small_network(1), unetr()):
        refusal = refusal_of(saved, network)
        assert refusal.code == "other_base"
        assert "'adapter'" in refusal.message
        assert "hippocampus" in refusal.message


def test_an_existing_folder_is_never_overwritten(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(InputError) as refusal:
        save_adapter(adapt(small_network()), saved)
    assert refusal.value.code == "output_exists"
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["adapter"]


def test_loaded_adapter_leaves_its_files_free_to_be_replaced(saved: Path) -> None:
    """Windows refuses to replace a file that is mapped into memory."""
    model, maps = load_adapter(small_network(), saved), Path("/proc/self/maps")
    state = model.trained_state()
    assert not maps.exists() or str(saved / WEIGHTS) not in maps.read_text(encoding="utf-8")
    (saved / WEIGHTS).write_bytes(bytes((saved / WEIGHTS).stat().st_size))
    assert all(torch.equal(value, state[name]) for name, value in model.trained_state().items())


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "rest").write_text("half")
    save_adapter(adapt(small_network()), tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert not (tmp_path / "a" / "rest").exists()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_folder_is_not_there(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption), new_folder(tmp_path / "a") as temporary:
        (temporary / "file").write_text("half")
        assert not (tmp_path / "a").exists()
        raise interruption
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_full_disk_leaves_nothing_and_is_said(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = adapt(unetr())
    # The limit on a file's size makes writing fail as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(TCurLoraError, match="'a' could not be written") as failure:
            save_adapter(model, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure.value.code == "cannot_write"
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TCurLoraError, match="'a'") as failure:
        save_adapter(adapt(small_network()), tmp_path / "file" / "a")
    assert failure.value.code == "cannot_write"
    assert failure.value.remedy


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.6, 0.95, 0.9999])
def test_truncated_weights_are_refused(saved: Path, share: float, hashed: bool) -> None:
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: int(share * len(content))])
    if not hashed:
        edit_config(saved, weights_sha256=None)
    refusal = refusal_of(saved)
    assert refusal.code == "damaged_adapter"
    assert "'adapter'" in refusal.message


@pytest.mark.parametrize("position", [3, 30, -30, -1])
def test_a_single_wrong_byte_in_the_weights_is_refused(saved: Path, position: int) -> None:
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[position] ^= 0x10
    (saved / WEIGHTS).write_bytes(bytes(content))
    assert refusal_of(saved).code == "damaged_adapter"


def test_missing_weights_are_refused(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    assert refusal_of(saved).code == "damaged_adapter"


def test_what_is_no_adapter_is_refused(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("empty", "nowhere", "file"):
        refusal = refusal_of(tmp_path / name)
        assert refusal.code == "not_an_adapter"
        assert f"'{name}'" in refusal.message
    shutil.copytree(saved, tmp_path / "lora")
    edit_config(tmp_path / "lora", peft_type="LORA")
    assert refusal_of(tmp_path / "lora").code == "not_an_adapter"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe{}", b"[" * 100_000, b'{"base_model": null}']
)
def test_a_damaged_configuration_is_refused(saved: Path, content: bytes) -> None:
    (saved / CONFIG).write_bytes(content)
    assert refusal_of(saved).code == "damaged_adapter"


@pytest.mark.parametrize("structures", [None, 7, ["text"], [{}], [{"name": "x", "value": "many"}]])
def test_structures_that_cannot_be_read_are_refused(saved: Path, structures: Any) -> None:
    edit_config(saved, structures=structures)
    with pytest.raises(InputError, match="which structures") as refusal:
        read_adapter_structures(saved)
    assert refusal.value.remedy
    edit_config(saved, structures=[{"name": "海馬", "value": 3}])
    assert read_adapter_structures(saved) == [Structure("海馬", 3)]


def test_a_truncated_configuration_is_refused(saved: Path) -> None:
    content = (saved / CONFIG).read_bytes().rstrip()
    for length in range(0, len(content), 97):
        (saved / CONFIG).write_bytes(content[:length])
        assert refusal_of(saved).code == "damaged_adapter"


KEYS = (
    "r",
    "alpha",
    "factors",
    "selection",
    "kinds",
    "kernels",
    "modules_to_save",
    "head",
    "seed",
    "stacks",
    "peft_type",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_refused(saved: Path, key: str) -> None:
    content = json.loads((saved / CONFIG).read_text())
    del content[key]
    (saved / CONFIG).write_text(json.dumps(content))
    refusal_of(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"r": "many"},
        {"r": 0},
        {"alpha": None},
        {"factors": "x"},
        {"selection": 3},
        {"kinds": ["x"]},
        {"kinds": 3},
        {"kernels": "x"},
        {"head": "nowhere"},
        {"head": 3},
        {"channels": [{"name": "background", "source": 7}]},
        {"channels": [{"name": "background", "source": "x"}]},
        {"channels": [{"source": 0}]},
        {"channels": [{"name": "background", "source": 0}]},
        {"channels": 3},
        {"stacks": []},
        {"stacks": None},
        {"stacks": {"a": 1}},
        {"stacks": [{"kind": "convolution", "shape": [6], "slices": ["0.weight"]}]},
        {"stacks": [{"kind": "convolution", "shape": [6, 27], "slices": ["0.weight#z"]}]},
        {"stacks": [{"kind": "convolution", "shape": [6, 27], "slices": ["9.weight"]}]},
        {"stacks": [{"kind": "convolution", "shape": [6, 6], "slices": ["0.weight"]}]},
        {"base_model": {}},
        {"base_model": []},
        {"base_model": {"fingerprint": 3}},
    ],
    ids=str,
)
def test_a_configuration_with_wrong_values_is_refused(saved: Path, change: dict[str, Any]) -> None:
    edit_config(saved, **change)
    refusal_of(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"rows_0": None},
        {"columns_1": None},
        {"core_0": None},
        {"whole_2_weight": None},
        {"core_0": torch.zeros(1, 1, 1)},
        {"core_0": torch.zeros(0)},
        {"whole_2_bias": torch.zeros(3)},
        {"rows_0": torch.tensor([0, 99])},
        {"columns_0": torch.tensor([0, 99])},
        {"columns_0": torch.tensor([0, 0, 0])},
        {"rows_0": torch.tensor([[0], [1]]), "columns_0": torch.tensor([[0], [1]])},
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(saved: Path, change: dict[str, Tensor | None]) -> None:
    edit_weights(saved)
    load_adapter(small_network(), saved)
    edit_weights(saved, **change)
    refusal_of(saved)


def test_files_name_parameters_and_hold_no_expressions(tmp_path: Path) -> None:
    network = small_network()
    parameters = sorted(name for name, _ in network.named_parameters())
    config = TensorCurConfig(r=2, modules_to_save=(r"^0\.b", "1."), target_modules=("0|2",))
    model = fill(adapt(network, config))
    save_adapter(model, tmp_path / "new")
    content = json.loads((tmp_path / "new" / CONFIG).read_text(encoding="utf-8"))
    assert content["modules_to_save"] and set(content["modules_to_save"]) <= set(parameters)
    assert content["target_modules"] is None
    state = load_adapter(small_network(), tmp_path / "new").trained_state()
    assert all(torch.equal(value, state[name]) for name, value in model.trained_state().items())


@pytest.mark.parametrize("pattern", [r"^0\.b", "(", r"(\w|\w\w)+#", 3])
def test_expressions_of_earlier_versions_are_not_used(tmp_path: Path, pattern: object) -> None:
    """What was trained whole is what the weights hold."""
    model = fill(adapt(small_network(), TensorCurConfig(r=2, modules_to_save=(r"^0\.b",))))
    save_adapter(model, tmp_path / "old")
    edit_config(tmp_path / "old", modules_to_save=[pattern], target_modules=[pattern])
    state = load_adapter(small_network(), tmp_path / "old").trained_state()
    assert state.keys() == model.trained_state().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.trained_state().items())

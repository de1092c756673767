"""Files that were made to do harm, where the tests of the engine's parts do not try it: nothing in them is executed.

Pickles in base models, expressions and targets in configs, archives that reach out, and wrong hashes of downloads are
tried in Testing/Engine (test_base_models, test_adapter_library, test_catalogue, test_merging).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import make_samples

from tcurlora.errors import InputError
from tcurlora.models.adapter_files import load_adapter
from tcurlora.models.adapter_library import import_adapter
from tcurlora.models.opening import load_base_model
from tcurlora.training import trainer as training


class Payload:
    """A pickle that leaves a canary file when it is executed."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return make_samples(tmp_path / "samples")


def forge(adapter: Path, weights: bytes) -> None:
    """Give an adapter other weights, and the hash that fits them."""
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_pickle_in_the_place_of_weights_or_checkpoint_is_not_executed(samples: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    network = load_base_model(samples / "bundle").build()
    packed = tmp_path / "packed"
    torch.save({"core.0": Payload(canary)}, packed)
    for payload in (pickle.dumps(Payload(canary)), packed.read_bytes()):
        forge(samples / "adapter", payload)
        with pytest.raises(InputError) as caught:
            load_adapter(network, samples / "adapter")
        assert caught.value.code == "damaged_adapter"
        checkpoint = samples / "job" / "checkpoint.safetensors"
        checkpoint.write_bytes(payload)
        assert training._load_checkpoint(checkpoint, training.TrainingSettings()) is None
        with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
            for path in (samples / "adapter").iterdir():
                archive.write(path, path.name)
        try:
            load_adapter(network, import_adapter(tmp_path / "hostile.zip", tmp_path / "library", force=True))
        except InputError as error:
            assert error.code in ("damaged_adapter", "not_an_adapter")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.exists()  # a careless loader would have been noticed


@pytest.mark.parametrize("pattern", [r"(\w|\w\w)+#", r"(a+)+$", ".*" * 20 + "#", "x{1,9999}{1,9999}", 7])
@pytest.mark.parametrize("key", ["modules_to_save", "target_modules"])
def test_expression_that_would_take_years_is_not_run(samples: Path, key: str, pattern: object) -> None:
    network = load_base_model(samples / "bundle").build()
    expected = load_adapter(network, samples / "adapter").trained_state()
    path = samples / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, key: [pattern]}), encoding="utf-8")
    began = time.monotonic()
    assert load_adapter(network, samples / "adapter").trained_state().keys() == expected.keys()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "change",
    [
        {"blocks_down": [1, 1_000_000]},
        {"blocks_down": [1, 8000]},
        {"init_filters": 8192},
        {"init_filters": 10**12},
        {"in_channels": 8192},
        {"blocks_down": [1] * 1000},
    ],
)
def test_network_that_its_weights_do_not_fill_is_refused_at_once(samples: Path, change: dict[str, Any]) -> None:
    path = samples / "bundle" / "configs" / "inference.json"
    inference = json.loads(path.read_text(encoding="utf-8"))
    inference["network_def"] |= change
    path.write_text(json.dumps(inference), encoding="utf-8")
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_base_model(samples / "bundle").build()
    assert caught.value.code == "bad_bundle"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("value", [-1, 0, 2**31, float("inf"), "x", None])
def test_label_numbers_that_cannot_be_are_refused(samples: Path, value: object) -> None:
    path = samples / "bundle" / "configs" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    metadata["structures"][0]["value"] = value
    path.write_text(json.dumps(metadata), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_base_model(samples / "bundle").labelled_structures()
    assert caught.value.code == "bad_bundle"

"""tCURLoRA: adapt a segmentation model to a site's own scans with tensor-CUR low-rank adapters.

from tcurlora import TensorCurConfig, adapt, load_adapter, merge

model = adapt(network, TensorCurConfig(r=8))    # any torch.nn.Module
...                                             # train model.parameters() that require gradients
network = merge(model)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcurlora.method.config import TensorCurConfig
    from tcurlora.method.model import TensorCurModel, adapt, merge
    from tcurlora.models.adapter_files import load_adapter, save_adapter

__version__ = "0.1.0"
__all__ = ["TensorCurConfig", "TensorCurModel", "adapt", "load_adapter", "merge", "save_adapter"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, which the command line's help must not pay.
    if name in ("load_adapter", "save_adapter"):
        return getattr(import_module("tcurlora.models.adapter_files"), name)
    if name == "TensorCurConfig":
        return getattr(import_module("tcurlora.method.config"), name)
    if name in __all__:
        return getattr(import_module("tcurlora.method.model"), name)
    raise AttributeError(f"module 'tcurlora' has no attribute '{name}'")

"""The authors' released PointGST checkpoints: a whole fine-tuned model with ``gft_adapter`` in every block."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from peft_kernels.data_errors import DataError
from vision_peft.methods.pointgst.adapter import Pcsa
from vision_peft.methods.pointgst.config import PointGstConfig
from vision_peft.methods.pointgst.spectra import SpectralLayer
from vision_peft.models.point_checkpoints import load_point_checkpoint, read_checkpoint
from vision_peft.models.point_model import PointModel

_ADAPTER = re.compile(r"(?:module\.|base_model\.)*(?P<block>.+)\.gft_adapter\.(?P<name>.+)")
# As the authors' classification code computes spectra, which the checkpoints were trained with.
RELEASED: dict[str, Any] = {
    "basis_orientation": "vertex",
    "scale_scope": "batch",
    "eigenvector_sign": "raw",
    "distance": "gemm",
}


def load_pointgst(model: PointModel, path: str | Path, local_size: int = 32, **fields: Any) -> PeftModel:
    """``model`` with the backbone, head and adapters of a released checkpoint, converted to safetensors.

    Args:
        model: a point transformer of the checkpoint's architecture and classes.
        path: the file.
        local_size: patches of a local graph, which the file does not tell.
        **fields: further fields of `PointGstConfig`, in place of the released ones.

    Raises:
        DataError: the file has no adapters, or does not fit the model; nothing is attached then.
    """
    state = read_checkpoint(path)
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    for match in filter(None, map(_ADAPTER.fullmatch, state)):
        adapters.setdefault(match["block"], {})[match["name"]] = state[match.string]
    ranks = {len(tensors["down.weight"]) for tensors in adapters.values() if "down.weight" in tensors}
    if len(ranks) != 1:
        raise DataError(f"{path} holds no PointGST adapters of one rank: expected `gft_adapter.down.weight` in blocks")
    settings = {"r": ranks.pop(), "local_size": local_size, **RELEASED, **fields}
    blocks = {name.rpartition(".")[0] for name, module in model.named_modules() if name.endswith((".norm2", ".ln_2"))}
    if blocks != adapters.keys():
        raise DataError(
            f"{path} has adapters in {len(adapters)} blocks, {type(model).__name__} has {len(blocks)} blocks; "
            f"not in both: {', '.join(sorted(blocks ^ adapters.keys()))}"
        )
    _check(str(path), adapters, Pcsa(model.embed_dim, settings["r"], PointGstConfig(**settings).basis))
    load_point_checkpoint(model, {name: t for name, t in state.items() if not _ADAPTER.fullmatch(name)})
    adapted: Any = get_peft_model(model, PointGstConfig(**settings))  # type: ignore[arg-type]
    for name, layer in model.named_modules():
        if isinstance(layer, SpectralLayer):
            (adapter,) = layer.adapters.values()
            adapter.load_state_dict(adapters[name.rpartition(".")[0]])
    return adapted


def _check(path: str, adapters: dict[str, dict[str, torch.Tensor]], like: Pcsa) -> None:
    """Raise a DataError unless each adapter has the tensors of ``like``."""
    expected = {name: list(tensor.shape) for name, tensor in like.state_dict().items()}
    for block, tensors in adapters.items():
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if differing:
            name = min(differing)
            raise DataError(
                f"{path}: {block}.gft_adapter.{name} has the shape {found.get(name, 'missing')}, "
                f"expected {expected.get(name, 'no such tensor')}"
            )

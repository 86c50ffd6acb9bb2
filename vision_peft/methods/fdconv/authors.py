"""States of FDConv layers by the names of the authors' layers, both ways.

Their convolution has ``dft_weight`` (or ``weight``), ``KSM_Global``, ``KSM_Local`` and ``FBM`` inside; their linear
layer an RMS norm and ``local_conv``. `FdConv2d` and `FdLinear` read such states as they are; here are functions for
files. The groups of frequencies are not part of their states: ``freq_order="official"`` sorts as they do.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

INSIDE = "dynamic."
SPECTRUM = "dft_weight"
# Parts of a convolution: theirs, ours.
_PARTS = {
    "KSM_Global.fc": "ksm_global.squeeze",
    "KSM_Global.bn": "ksm_global.norm",
    "KSM_Global.relu": "ksm_global.star",
    "KSM_Global.channel_fc": "ksm_global.channel",
    "KSM_Global.filter_fc": "ksm_global.filter",
    "KSM_Global.spatial_fc": "ksm_global.spatial",
    "KSM_Global.kernel_fc": "ksm_global.kernel",
    "KSM_Local.conv": "ksm_local",
    "KSM_Local.norm": "ksm_local.norm",
}
_LINEAR_PARTS = {"KSM_Global.norm": "ksm_global.norm", "local_conv": "ksm_local"}
_OURS = {**_PARTS, **_LINEAR_PARTS}
_THEIRS = {ours: theirs for theirs, ours in _PARTS.items()}
_THEIRS_LINEAR = {**_THEIRS, **{ours: theirs for theirs, ours in _LINEAR_PARTS.items()}}
_BANDS = "FBM.freq_weight_conv_list"
_KEY = re.compile(
    rf"((?:.+\.)?)(?<!{re.escape(INSIDE)})(?:({SPECTRUM})"
    rf"|({'|'.join(map(re.escape, _OURS))}|{re.escape(_BANDS)}\.\d+)\.(\w+))"
)


def is_authors(key: str) -> bool:
    """Whether the key is one of the authors' that has another name here."""
    return _KEY.fullmatch(key) is not None


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state by the names of `FdConv2d` and `FdLinear`; keys that are not of FDConv's parts stay."""
    found: dict[str, Tensor] = {}
    bands: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, tensor in state.items():
        match = _KEY.fullmatch(key)
        if match is None:
            found[key] = tensor
            continue
        layer, spectrum, part, leaf = match.groups()
        if spectrum:
            found[f"{layer}{INSIDE}{SPECTRUM}"] = tensor
        elif part.startswith(_BANDS):
            bands[f"{layer}{INSIDE}fbm.{leaf}"][int(part.rpartition(".")[2])] = tensor
        elif leaf != "num_batches_tracked":
            # Their heads are 1 x 1 convolutions, their local branch one from a single channel.
            found[f"{layer}{INSIDE}{_OURS[part]}.{leaf}"] = tensor.flatten(1) if tensor.ndim > 2 else tensor
    found.update({key: torch.stack([parts[i] for i in sorted(parts)]) for key, parts in bands.items()})
    return found


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model with `FdConv2d` and `FdLinear` by the authors' names; other keys stay.

    Raises:
        ValueError: a layer that theirs could not be: groups in another order, or another norm.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, inside, rest = key.rpartition(INSIDE)
        if not inside:
            found[key] = tensor
        elif rest == SPECTRUM:
            found[layer + rest] = tensor
        elif rest.startswith("fbm."):
            leaf = rest.removeprefix("fbm.")
            found.update({f"{layer}{_BANDS}.{i}.{leaf}": band for i, band in enumerate(tensor)})
        elif rest != "groups":
            found.update(_part(state, layer, rest, tensor))
    return found


def _part(state: Mapping[str, Tensor], layer: str, rest: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of the global or local branch, by their name and in their shape."""
    own, norm = layer + INSIDE, f"{layer}{INSIDE}ksm_global.norm."
    convolution = f"{norm}running_mean" in state
    if f"{own}groups" not in state:
        raise ValueError(
            f"the groups of frequencies of {layer.rstrip('.')!r} are in another order than the authors': make the "
            'model with freq_order="official"'
        )
    if not convolution and (f"{norm}weight" not in state or f"{norm}bias" in state):
        raise ValueError(
            f"the authors' layers have a batch norm or an RMS norm; {layer.rstrip('.')!r} has another: "
            "ksm_norm 'frozen', 'batch' or 'rms'"
        )
    name, _, leaf = rest.rpartition(".")
    part = (_THEIRS if convolution else _THEIRS_LINEAR)[name]
    if name == "ksm_local":
        tensor = tensor[:, None]
    elif convolution and tensor.ndim == 2:
        tensor = tensor[..., None, None]
    found = {f"{layer}{part}.{leaf}": tensor}
    if leaf == "running_mean":
        found[f"{layer}{part}.num_batches_tracked"] = torch.tensor(0)
    return found

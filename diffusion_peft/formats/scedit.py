"""Read the weights that SCEdit's authors and the port of their code have, as adapters of `SceditConfig`.

| what | keys, with skips j in decoder order and i in encoder order |
|---|---|
| their own | `model.lsc_identity.{j}.tuner_op.ln1`, `ln2` |
| the port's | `...up_blocks.{b}.resnets.{r}.scetuner_{name}.tuner_op.ln1`, or `lsc_identity.{j}.scetuner_{name}...` |
| controllable | `{m}.pre_hint_blocks.{0, 2, .., 12}`, `{m}.dense_hint_blocks.{i}.1`, `{m}.lsc_tuner_blocks.{j}...` |

All sizes are read from the shapes. Their `scale` and the strides of the stem are in no file: 1 and the released ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn

from diffusion_peft.methods.scedit import SceditConfig
from peft_kernels.adapter_files import AdapterError
from peft_kernels.adapter_fit import describe
from peft_kernels.adapter_formats import PEFT_ROOT
from peft_kernels.skips import Skip, long_skips

_MLP = re.compile(
    r"(?P<owner>.*?)(?:lsc_identity|lsc_tuner_blocks)\.(?P<skip>\d+)\.(?:scetuner_(?P<name>\w+)\.)?tuner_op\."
    r"ln(?P<part>[12])\.(?P<what>weight|bias)"
)
_MLP_AT = re.compile(
    r".*?(?P<reader>up_blocks\.\d+\.resnets\.\d+)\.scetuner_(?P<name>\w+)\.tuner_op\.ln(?P<part>[12])\."
    r"(?P<what>weight|bias)"
)
_ENCODER = re.compile(
    r"(?P<owner>.*?)(?:pre_hint_blocks\.(?P<pre>\d+)|dense_hint_blocks\.(?P<dense>\d+)\.1)\.(?P<what>weight|bias)"
)
_PARTS = {"1": "down", "2": "up"}
STEM, LAST = 7, "pre.6.weight"


def is_scedit(keys: Iterable[str]) -> bool:
    """Whether a file's keys are those of SCEdit's authors or of the port."""
    return any(pattern.fullmatch(key) for key in keys for pattern in (_MLP, _MLP_AT, _ENCODER))


def read_scedit(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Configuration and tensors by PEFT's keys, of a file that `is_scedit`.

    Raises:
        AdapterError: the model has no long skips, keys are for nothing or missing, or there are several adapters.
    """
    try:
        skips = long_skips(model)
    except ValueError as error:
        raise AdapterError(f"{path} is SCEdit's, and {error}") from None
    tuners, encoder = _sorted(path, tensors, skips, model)
    edited = sorted({index for index, _ in tuners})
    _check_whole(path, tuners, encoder, edited, skips)
    widths = {index: tuple(tuners[index, "down.weight"].shape) for index in edited}  # hidden, channels
    given = [widths[index][1] if index in widths else skip.channels for index, skip in enumerate(skips)]
    wrong = next((j for j, skip in enumerate(skips) if given[j] != skip.channels), None)
    if wrong is not None:
        raise AdapterError(
            f"{path} is for another UNet than {describe(model)}: at skip {wrong} ({skips[wrong].reader}) it has "
            f"{given[wrong]} channels, expected {skips[wrong].channels}"
        )
    config = SceditConfig(
        hidden_sizes=[widths[index][0] if index in widths else 1 for index in range(len(skips))],
        skip_indices=None if len(edited) == len(skips) else edited,
        **_control(encoder),
    )
    root = skips[0].reader.rpartition("up_blocks.")[0]
    found = {f"{PEFT_ROOT}{skips[j].reader}.scedit_adapter.{key}": tensor for (j, key), tensor in tuners.items()}
    found |= {f"{PEFT_ROOT}{root}conv_in.scedit_adapter.{key}": tensor for key, tensor in encoder.items()}
    return config, found


def _sorted(
    path: Path, tensors: dict[str, Tensor], skips: list[Skip], model: nn.Module
) -> tuple[dict[tuple[int, str], Tensor], dict[str, Tensor]]:
    """The tensors of the tuners, by skip and name, and those of the condition encoder."""
    tuners, encoder, owners, others = {}, {}, set(), []
    places = {skip.reader: index for index, skip in enumerate(skips)}
    for key, tensor in tensors.items():
        if at := _MLP_AT.fullmatch(key):
            reader = next((name for name in places if name.endswith(at["reader"])), None)
            index, owner = places.get(reader or ""), at["name"]
        elif at := _MLP.fullmatch(key):
            index, owner = int(at["skip"]), at["name"] or at["owner"]
        elif at := _ENCODER.fullmatch(key):
            number = at["dense"] if at["pre"] is None else int(at["pre"]) / 2
            name = f"dense.{number}" if at["pre"] is None else f"pre.{number:g}"
            encoder[f"{name}.{at['what']}"] = tensor
            owners.add(at["owner"])
            continue
        else:
            others.append(key)
            continue
        if index is None or index >= len(skips):
            others.append(key)
            continue
        tuners[index, f"{_PARTS[at['part']]}.{at['what']}"] = tensor
        owners.add(owner)
    if others:
        share = (len(tensors) - len(others)) / len(tensors)
        raise AdapterError(
            f"{path} does not fit {describe(model)}: {len(others)} keys are for nothing, first {others[0]!r} "
            f"({share:.0%} match)"
        )
    if len(owners) > 1:
        raise AdapterError(f"{path} holds {len(owners)} adapters ({', '.join(sorted(owners))}): split it, one a file")
    return tuners, encoder


def _check_whole(
    path: Path, tuners: dict[tuple[int, str], Tensor], encoder: dict[str, Tensor], edited: list[int], skips: list[Skip]
) -> None:
    whats = ("weight", "bias")
    wanted = [f"tuner {j}, {part}.{what}" for j in edited for part in ("down", "up") for what in whats]
    there = {f"tuner {j}, {key}" for j, key in tuners}
    if encoder:
        convs = [*(f"pre.{k}" for k in range(STEM)), *(f"dense.{i}" for i in range(len(skips)))]
        wanted += [f"{conv}.{what}" for conv in convs for what in whats]
        there |= set(encoder)
    missing = [name for name in wanted if name not in there] or (["every tuner"] if not edited else [])
    if missing or there - set(wanted):
        raise AdapterError(
            f"{path} is not a whole SCEdit adapter of {len(skips)} skips: "
            + (f"it lacks {missing[0]}" if missing else f"it has {min(there - set(wanted))} too")
        )


def _control(encoder: dict[str, Tensor]) -> dict[str, Any]:
    """The settings of a condition encoder, by its shapes."""
    if not encoder:
        return {}
    first, last = encoder["pre.0.weight"], encoder[LAST]
    return {
        "control": True,
        "pre_in_channels": first.shape[1],
        "pre_out_channels": last.shape[0],
        "pre_dim_ratio": first.shape[0] / 16,
        "dense_kernel": encoder["dense.0.weight"].shape[-1],
    }

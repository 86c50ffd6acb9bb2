"""Public checkpoints of point transformers, by their own names: strictly, with a report of what they left and lacked.

Files of pretraining (Point-MAE, ACT, ReCon, Point-BERT, PointGPT) keep the encoder under a prefix beside decoders that
nobody needs later; fine-tuned ones have bare names. Only tokens and heads, which pretraining lacks, may start anew:
where anything else is missing, unknown, of another shape or not finite, nothing is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peft_kernels.adapter_files import refuse_pickle
from peft_kernels.data_errors import DataError

if TYPE_CHECKING:
    from vision_peft.models.point_model import PointModel

_WRAPPERS = ("module.", "base_model.")
_ENCODERS = ("MAE_encoder.", "ACT_encoder.", "GPT_Transformer.", "transformer_q.")
# Beside the encoder in files of pretraining, by the first part of their names.
_OF_PRETRAINING = ("mask_token", "lm_head", "cls_head", "increase_dim", "decoder_pos_embed", "MAE_decoder")
_OF_PRETRAINING += ("generator_blocks",)
_HEAD = "cls_head_finetune"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What came of a checkpoint.

    Attributes:
        loaded: number of tensors.
        fresh: those of the model that keep their start.
        dropped: those of the file that the model has no use for.
    """

    loaded: int
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        fresh = f"{len(self.fresh)} start anew{_shown(self.fresh)}"
        return f"{self.loaded} tensors loaded; {fresh}; {len(self.dropped)} dropped{_shown(self.dropped)}"


def load_point_checkpoint(model: PointModel, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Fill ``model`` from a file of safetensors, or from tensors by name.

    A head of as many classes as the model's is loaded from fine-tuned files; any other one is dropped.

    Raises:
        DataError: the file cannot be read or is not one of this model; the model is as it was.
        AdapterError: the file is a pickle; the message tells how to convert it.
    """
    given = isinstance(source, Mapping)
    fitting, report = _fitting(model, source if given else read_checkpoint(source), "it" if given else str(source))
    model.load_state_dict(fitting)
    return report


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: PointModel) -> dict[str, Tensor]:
    """What timm loads of a file: ``create_model(..., pretrained=True, pretrained_cfg_overlay={"file": path})``.

    Raises:
        DataError: the file is not one of this model.
    """
    return _fitting(model, state_dict, "the pretrained file")[0]


def _fitting(model: PointModel, state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], LoadReport]:
    """The model's tensors as ``state`` changes them, and the report."""
    own, dropped, pretraining = _encoder(state)
    expected = model.state_dict()

    def in_head(name: str) -> bool:
        return name.startswith((*model.head_names, _HEAD))

    head = [name for name in expected if in_head(name)]
    if pretraining or not all(name in own and own[name].shape == expected[name].shape for name in head):
        dropped += [name for name in own if in_head(name)]
    dropped += [name for name in own if name not in expected and name.partition(".")[0] in _OF_PRETRAINING]
    own = {name: own[name] for name in own.keys() - set(dropped)}
    fresh = [name for name in expected if name not in own]
    lacking = [name for name in fresh if not in_head(name) and not name.startswith(model.fresh_names)]
    unknown = sorted(own.keys() - expected.keys())
    wrong = [name for name in expected if name in own and own[name].shape != expected[name].shape]
    bad = sorted(name for name, t in own.items() if t.is_floating_point() and not torch.isfinite(t).all())
    complaints = []
    if lacking:
        complaints.append(f"{len(lacking)} of its {len(expected)} tensors are missing{_shown(lacking)}")
    if unknown:
        complaints.append(f"{len(unknown)} are not the model's{_shown(unknown)}")
    if wrong:
        found, wanted = list(own[wrong[0]].shape), list(expected[wrong[0]].shape)
        complaints.append(f"{wrong[0]} has the shape {found}, expected {wanted} ({len(wrong)} of other shapes)")
    if bad:
        complaints.append(f"{len(bad)} hold NaN or infinity{_shown(bad)}")
    if complaints:
        raise DataError(f"{source} does not fit {type(model).__name__}: {'; '.join(complaints)}")
    report = LoadReport(len(own), tuple(fresh), tuple(dropped))
    _logger.info("%s: %s", source, report)
    return {**expected, **own}, report


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors.

    Raises:
        DataError: there is none, or it is damaged.
        AdapterError: it is a pickle.
    """
    path = Path(path).expanduser()
    refuse_pickle(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is no readable file of safetensors: {error}") from None


def _encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], bool]:
    """The model's tensors under bare names, the names of those beside it, and whether the file is of pretraining."""
    own = dict(state)
    for wrapper in _WRAPPERS:
        if own and all(name.startswith(wrapper) for name in own):
            own = {name.removeprefix(wrapper): tensor for name, tensor in own.items()}
    for prefix in _ENCODERS:
        found = {name.removeprefix(prefix): tensor for name, tensor in own.items() if name.startswith(prefix)}
        if found:
            return found, [name for name in own if not name.startswith(prefix)], True
    return own, [], False


def _shown(names: Iterable[str]) -> str:
    """Up to three of the names, in brackets."""
    names = list(names)
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""

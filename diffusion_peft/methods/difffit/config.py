"""DiffFit's settings."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from diffusion_peft.methods.difffit.sites import DEFAULT_SITES, SITES
from diffusion_peft.methods.difffit.tuner import DiffFitTuner
from peft_kernels.config import MethodConfig, choices, nearest, require
from peft_kernels.registry import register


def _rate(config: DiffFitConfig, name: str) -> dict[str, float]:
    """Ten times the base learning rate, and no weight decay, for all but a head of the user's own."""
    if f".{DiffFitTuner.prefix}adapter." not in f".{name}":
        return {}
    return {"lr_ratio": config.lr_ratio, "weight_decay": 0.0}


@register(
    "difffit",
    tuner=DiffFitTuner,
    prefix="difffit_",
    family="diffusion",
    summary="Biases, norms, class table, and a factor on the output of every other block's branch; folds away",
    paper="Xie et al., ICCV 2023",
    group=_rate,
)
@dataclass
class DiffFitConfig(MethodConfig):
    """DiffFit: ``y = γ (W x + b + δb)`` at the ends of attention and MLP; biases, norms and class table trained beside.

    Every trained tensor is held as its difference from the base, ``γ − 1``, ``δb``, ``δw``, so that adapters add up, a
    scale interpolates to the base, and small steps survive half precision. The learning rate is to be about ten times
    that of pretraining, without weight decay. Original DiT-XL/2 with 101 classes: 639,392 parameters.

    Args:
        gamma_sites: outputs that get a factor: ``attn_out``, ``ffn_out``, ``cross_out`` (the block's branches), ``q``,
            ``k``, ``v``, ``ffn_hidden``, ``single_out`` (Flux's single blocks), and ``o``, ``ffn``: a second factor on
            the layers of the branches, redundant with the first, which some implementations train too.
        gamma_blocks: blocks that carry them, counted among those that have such a site: ``all``, ``first_half``, the
            first n, or a list of indices.
        gamma_modules: for models of other families: a regular expression over module names by site, instead of the
            two above; it may end in a row block, ``qkv[q]``.
        gamma_init: γ at the start; other than 1 changes the output.
        gamma_shape: a factor per ``channel``, or one ``scalar`` a site.
        train_bias: all biases (and PixArt's ``scale_shift_table``).
        train_norm: weights and biases of normalisation layers.
        train_embedding: the class table; or a regular expression of the embedding layers to train.
        add_bias: a bias, from 0, on linear layers that have none.
        add_norm_affine: a weight and a bias on layer norms that have none.
        tie_replicated: diffusers' DiT has a copy of timestep MLP and class table in every block; train them as one.
        num_classes: another number of classes: a new table from N(0, 0.02²) that keeps the null row, as its last.
        lr_ratio: factor on the base learning rate, which this project's training loop applies.
        pos_scale: factor on the coordinates of the position table, G1 / G2 for a model configured for G2 from one
            pretrained at G1; ``None`` leaves them to diffusers, which does so by itself for other sizes than its own.
    """

    gamma_sites: list[str] = field(
        default_factory=lambda: list(DEFAULT_SITES), metadata={"help": f"Outputs with a factor: {', '.join(SITES)}."}
    )
    gamma_blocks: str | int | list[int] = field(
        default="first_half", metadata={"help": "all, first_half, the first n, or a list of indices."}
    )
    gamma_modules: dict[str, str] | None = field(
        default=None, metadata={"help": "Other models: a regular expression over module names by site."}
    )
    gamma_init: float = field(default=1.0, metadata={"help": "The factors at the start."})
    gamma_shape: str = field(default="channel", metadata={"help": "channel, or one scalar a site."})
    train_bias: bool = field(default=True, metadata={"help": "Train all biases."})
    train_norm: bool = field(default=True, metadata={"help": "Train weights and biases of norm layers."})
    train_embedding: bool | str = field(
        default=True, metadata={"help": "Train the class table; or a regular expression of embedding layers."}
    )
    add_bias: bool = field(default=False, metadata={"help": "Give linear layers without a bias one."})
    add_norm_affine: bool = field(default=False, metadata={"help": "Give plain layer norms weight and bias."})
    tie_replicated: bool = field(default=True, metadata={"help": "Train the copies in diffusers' DiT as one."})
    num_classes: int | None = field(default=None, metadata={"help": "Another number of classes."})
    lr_ratio: float = field(default=10.0, metadata={"help": "Factor on the base learning rate."})
    pos_scale: float | None = field(default=None, metadata={"help": "Factor on position coordinates, G1 / G2."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gamma_sites = list(self.gamma_sites)
        for site in [*self.gamma_sites, *(self.gamma_modules or {})]:
            if site not in SITES:
                raise ValueError(
                    f"DiffFitConfig knows the sites {', '.join(SITES)}; found {site!r}{nearest(site, SITES)}"
                )
        require(len(set(self.gamma_sites)) == len(self.gamma_sites), self, "gamma_sites", "without duplicates")
        self._check_blocks()
        self._check_patterns()
        choices(self, "gamma_shape", ("channel", "scalar"))
        require(0 < self.gamma_init < math.inf, self, "gamma_init", "above 0")
        if self.gamma_init != 1:
            warnings.warn(f"gamma_init={self.gamma_init:g} changes the output before any training", stacklevel=3)
        require(0 < self.lr_ratio < math.inf, self, "lr_ratio", "above 0")
        require(self.pos_scale is None or 0 < self.pos_scale < math.inf, self, "pos_scale", "above 0 or None")
        require(self.num_classes is None or _count(self.num_classes, 1), self, "num_classes", "at least 1 or None")
        groups = (self.train_bias, self.train_norm, self.train_embedding, self.add_bias, self.add_norm_affine)
        if not (self.gamma_sites or self.gamma_modules or self.num_classes or any(groups)):
            raise ValueError(
                "DiffFitConfig leaves nothing to train: gamma_sites is empty and train_bias, train_norm, "
                "train_embedding, add_bias and add_norm_affine are off"
            )

    def _check_patterns(self) -> None:
        given = {f"gamma_modules[{site!r}]": pattern for site, pattern in (self.gamma_modules or {}).items()}
        if isinstance(self.train_embedding, str):
            given["train_embedding"] = self.train_embedding
        for name, pattern in given.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"DiffFitConfig.{name} is no regular expression: {pattern!r} ({error})") from None

    def _check_blocks(self) -> None:
        value: Any = self.gamma_blocks
        if isinstance(value, str):
            choices(self, "gamma_blocks", ("all", "first_half"))
        elif isinstance(value, (list, tuple)):
            self.gamma_blocks = list(value)
            whole = all(_count(index, 0) for index in value)
            require(whole and len(set(value)) == len(value), self, "gamma_blocks", "a list of different indices from 0")
        else:
            require(_count(value, 1), self, "gamma_blocks", "all, first_half, a number of blocks, or a list of indices")

    def block_indices(self, count: int) -> list[int]:
        """The blocks that carry factors, of ``count``.

        Raises:
            ValueError: an index, or a number of blocks, beyond that.
        """
        value = self.gamma_blocks
        if isinstance(value, str):
            return list(range(count if value == "all" else count // 2))
        wanted = list(range(value)) if isinstance(value, int) else value
        if count and wanted and max(wanted) >= count:
            raise ValueError(f"DiffFitConfig.gamma_blocks asks for block {max(wanted)}; the model has {count} blocks")
        return wanted if count else []


def _count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

"""SaRA's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from diffusion_peft.methods.sara.tuner import SaraTuner
from peft_kernels.budget import Plan
from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.registry import register

THRESHOLD = 2e-3
SCOPES = ("global", "per_tensor")


def _decay(config: SaraConfig, name: str) -> dict[str, float]:
    """Values are entries of matrices, though a vector holds them: they decay."""
    return {"decays": True} if f".{SaraTuner.prefix}adapter." in f".{name}" else {}


@register(
    "sara",
    tuner=SaraTuner,
    prefix="sara_",
    family="diffusion",
    summary="Train the weights' smallest entries, with a low-rank penalty and a second selection; folds away",
    paper="Hu et al., ICLR 2025",
    group=_decay,
)
@dataclass
class SaraConfig(MethodConfig):
    """SaRA: ``W = W0 with W[|W0| < θ] = v``; v is trained, and nothing else.

    By default the entries of all linear, convolution, norm and embedding modules compete, biases among them. Published
    thresholds for Stable Diffusion 1.5 (859,520,964 parameters): 2e-4 trains 5 M, 8e-4 20 M, 2e-3 50 M. The paper's
    recipe: AdamW with weight decay 0.01 (it draws the values themselves to 0, not their change), `learning_rate`,
    cosine schedule, gradients clipped at 1.

    Any training loop trains v. The rank penalty and the second selection need calls around the optimiser's step: see
    `SaraAllocator`. There are no settings for how gradients are computed and indices stored: the sparse operators
    choose by density, and places are saved, so that a file does not depend on how a base model was cast.

    Args:
        threshold: θ; entries of smaller magnitude are trained. 2e-3 where neither of the next two is given.
        density: instead of θ, the share of all entries that is trained, in (0, 1).
        num_trainable: instead of θ, how many are trained; where magnitudes are equal, as few less as possible.
        scope: ``global``, or ``per_tensor`` for the same density in each tensor.
        rank_weight: λ of the nuclear norm, which is penalised in one random matrix a step; 0 for none. 5e-4 in the
            authors' example, 5e-3 in their text.
        rank_min_dim: matrices with two dimensions, both above this, are penalised.
        rank_num: how many random matrices at a time.
        rank_every: after how many steps others are drawn; their subgradients are computed once and held until then.
        rank_seed: of the draw, the same in all processes.
        reselect_step: after this many steps entries that have left the band are frozen; half of the run if not given,
            0 for never.
        keep_moments: at that step, go on with the optimiser's moments (the authors' dense-mask variant); otherwise skip
            one update and start them anew (their memory-saving variant).
        train_bias: whether biases take part, those of norms too.
        train_norm: whether the scales of norms take part, and other vectors of modules.
        train_embedding: whether the tables of embeddings take part.
        alpha: strength of the change at weight 1: ``W0 + α (W − W0)``.
        plan: how many entries of each tensor are trained; found when the adapter is attached.
        origin: fingerprints of the base model's values there, which a saved adapter asks for again.
    """

    threshold: float | None = field(default=None, metadata={"help": f"Smaller entries are trained; {THRESHOLD:g}."})
    density: float | None = field(default=None, metadata={"help": "Instead: the share that is trained, in (0, 1)."})
    num_trainable: int | None = field(default=None, metadata={"help": "Instead: how many entries are trained."})
    scope: str = field(default="global", metadata={"help": f"One threshold, or one a tensor: {', '.join(SCOPES)}."})
    rank_weight: float = field(default=5e-4, metadata={"help": "Weight of the nuclear norm; 0 for none."})
    rank_min_dim: int = field(default=64, metadata={"help": "Penalised are matrices with both sides above this."})
    rank_num: int = field(default=1, metadata={"help": "Matrices that are penalised at a time."})
    rank_every: int = field(default=1, metadata={"help": "Steps after which others are drawn and computed."})
    rank_seed: int = field(default=0, metadata={"help": "Seed of the draw of matrices."})
    reselect_step: int | None = field(
        default=None, metadata={"help": "Steps before the second selection; half of the run if null, 0 for never."}
    )
    keep_moments: bool = field(default=True, metadata={"help": "Keep the optimiser's moments at that step."})
    train_bias: bool = field(default=True, metadata={"help": "Select among biases too."})
    train_norm: bool = field(default=True, metadata={"help": "Select among scales of norms too."})
    train_embedding: bool = field(default=True, metadata={"help": "Select among embedding tables too."})
    alpha: float = field(default=1.0, metadata={"help": "Strength of the change, 0 to 2; 1 as trained."})
    plan: dict[str, Any] | None = field(default=None, metadata={"help": "Entries by tensor; found in the weights."})
    origin: dict[str, dict[str, str]] | None = field(
        default=None, metadata={"help": "Fingerprints of the base's values; found in the weights."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("threshold", "density", "num_trainable") if getattr(self, name) is not None]
        if len(given) > 1 and self.plan is None:
            raise ValueError(
                "SaraConfig takes one of threshold, density and num_trainable; "
                f"found {' and '.join(f'{name}={getattr(self, name)!r}' for name in given)}"
            )
        if not given:
            self.threshold = THRESHOLD
        require(self.threshold is None or 0 < self.threshold < math.inf, self, "threshold", "above 0")
        require(self.density is None or 0 < self.density < 1, self, "density", "in (0, 1)")
        choices(self, "scope", SCOPES)
        if self.scope == "per_tensor" and self.density is None and self.num_trainable is None:
            raise ValueError("SaraConfig.scope per_tensor gives each tensor the same density: give density")
        require(0 <= self.rank_weight < math.inf, self, "rank_weight", "at least 0")
        for name, least in (("rank_min_dim", 0), ("rank_num", 1), ("rank_every", 1), ("rank_seed", 0)):
            require(_whole(getattr(self, name), least), self, name, f"an integer >= {least}")
        for name, least in (("num_trainable", 1), ("reselect_step", 0)):
            value = getattr(self, name)
            require(value is None or _whole(value, least), self, name, f"an integer >= {least}")
        require(0 <= self.alpha <= 2, self, "alpha", "in [0, 2]")
        if self.plan is not None:
            self.plan = Plan.read(self.plan).as_dict()

    @property
    def learning_rate(self) -> float:
        """The authors' rate for θ, ``1e-3 exp(-350 θ)`` (appendix K): 4.966e-4 at 2e-3.

        Raises:
            ValueError: θ is not known before the adapter is attached (``density``), or each tensor has its own.
        """
        if self.threshold is None:
            raise ValueError("the learning rate is a function of the threshold, which is known once SaRA is attached")
        return 1e-3 * math.exp(-350 * self.threshold)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

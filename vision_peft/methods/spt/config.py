"""SPT's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from peft_kernels.budget import Plan
from peft_kernels.config import MethodConfig, choices, require
from peft_kernels.registry import register
from peft_kernels.sensitivity import MODES
from vision_peft.methods.spt import selection
from vision_peft.methods.spt.tuner import SptTuner

STRUCTURED = ("lora", "adapter")
RULES = ("closest", "at_most")
# Tensors that begin with one of these names, counted from the backbone, are never scored.
EXCLUDED = (
    "patch_embed", "stem", "conv1", "pos_embed", "cls_token", "dist_token", "reg_token", "rel_pos_bias",
)  # fmt: skip


@register(
    "spt",
    tuner=SptTuner,
    prefix="spt_",
    family="vision",
    summary="LoRA or adapters where a task is most sensitive, single entries elsewhere; the LoRA form folds away",
    paper="He et al., ICCV 2023",
    choose=selection.choose,
)
@dataclass
class SptConfig(MethodConfig):
    """SPT: a budget of trainable parameters, given to what the loss is most sensitive to.

    ``S = Σ_b g_b²`` scores every weight. Of the highest scores, a matrix with many gets a module of its own
    (``W + Up · Down``, or a bottleneck after it), a vector with many is trained whole, elsewhere single entries are:
    ``y = x (W + scatter(I, δ))ᵀ + b``. What is decided stands in ``plan``; without one the configuration cannot be
    attached. `vision_peft.spt_config(model, loader, budget=...)` makes it from data, `from_scores` from scores.

    Args:
        structured: ``lora`` (folds away) or ``adapter`` (a bottleneck on the matrix's output; does not).
        rank: width of every module.
        budget: wanted trainable parameters, the head not counted; below 1 a share of all candidates.
        budget_rule: ``closest`` (the authors': of the numbers of hits in ``grid`` the one whose total is nearest) or
            ``at_most`` (the most hits whose total does not exceed the budget).
        grid: with ``closest``, 79 numbers of hits in steps of 0.02 · grid are tried; ``None`` tries every one.
        matrix_ease: α; a matrix gets a module from ``cost / α`` hits. 10 in the authors' code, 1 in their text.
        vector_ease: β; a vector is trained whole from ``length / β`` hits.
        tune_vectors: whether vectors are trained whole at all.
        structured_only: leave single entries out.
        num_batches: batches that are scored.
        batch_size: their size, where the training loop makes them.
        per_sample: square the gradient of each sample instead of each batch's.
        scoring_mode: ``train`` (stochastic depth on, as the authors) or ``eval``.
        scoring_seed: of what is random while scoring.
        module_dropout: dropout on the modules' input while training (not before the attention's output projection).
        module_drop_path: stochastic depth of the modules while training.
        always_train: raw parameters trained whole outside the selection, counted in the budget; ``None`` for the class
            token where there is one.
        exclude: names, counted from the backbone, that scored tensors do not begin with; ``None`` for patch and
            position embedding, tokens and stem. The classifier is never scored.
        fused_splits: row blocks of fused modules by name, each a matrix of its own.
        plan: what is trained: ``ranks`` of matrices, number of ``entries`` by tensor, ``full`` vectors.
    """

    structured: str = field(default="lora", metadata={"help": "Module on sensitive matrices: lora or adapter."})
    rank: int = field(default=8, metadata={"help": "Width of every module."})
    budget: float = field(default=400_000, metadata={"help": "Wanted parameters without the head; below 1 a share."})
    budget_rule: str = field(default="closest", metadata={"help": f"Search: {', '.join(RULES)}."})
    grid: int | None = field(default=1_000_000, metadata={"help": "closest tries steps of 0.02 · grid; null: all."})
    matrix_ease: float = field(default=10.0, metadata={"help": "A matrix gets a module from cost / this many hits."})
    vector_ease: float = field(default=5.0, metadata={"help": "A vector is trained whole from length / this hits."})
    tune_vectors: bool = field(default=True, metadata={"help": "Allow vectors to be trained whole."})
    structured_only: bool = field(default=False, metadata={"help": "Leave single entries out."})
    num_batches: int = field(default=16, metadata={"help": "Batches that are scored."})
    batch_size: int = field(default=32, metadata={"help": "Size of the scored batches."})
    per_sample: bool = field(default=False, metadata={"help": "Square each sample's gradient, not each batch's."})
    scoring_mode: str = field(default="train", metadata={"help": f"Mode while scoring: {', '.join(MODES)}."})
    scoring_seed: int = field(default=0, metadata={"help": "Seed of the scoring passes."})
    module_dropout: float = field(default=0.1, metadata={"help": "Dropout on the modules' input."})
    module_drop_path: float = field(default=0.1, metadata={"help": "Stochastic depth of the modules."})
    always_train: list[str] | None = field(
        default=None, metadata={"help": "Raw parameters trained whole; the class token when not given."}
    )
    exclude: list[str] | None = field(default=None, metadata={"help": "Name beginnings of tensors never scored."})
    fused_splits: dict[str, int] = field(
        default_factory=lambda: {"qkv": 3}, metadata={"help": "Row blocks of fused modules, by name."}
    )
    plan: dict[str, Any] | None = field(default=None, metadata={"help": "What is trained; made from data."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Places of single entries by tensor: data, saved with the adapter and not in its configuration.
        self.positions: dict[str, Tensor] = {}
        choices(self, "structured", STRUCTURED)
        choices(self, "budget_rule", RULES)
        choices(self, "scoring_mode", MODES)
        for name in ("rank", "num_batches", "batch_size"):
            value = getattr(self, name)
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= 1, self, name, "an integer >= 1"
            )
        require(self.budget > 0, self, "budget", "above 0")
        require(
            self.grid is None or (isinstance(self.grid, int) and self.grid >= 1), self, "grid", "at least 1 or null"
        )
        for name in ("matrix_ease", "vector_ease"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("module_dropout", "module_drop_path"):
            require(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")
        if self.plan is not None:
            self.plan = Plan.read(self.plan).as_dict()

    @property
    def excluded(self) -> list[str]:
        """``exclude``, or its default."""
        return list(EXCLUDED) if self.exclude is None else self.exclude

    @property
    def trains_entries(self) -> bool:
        """Whether hits outside of structured tensors are trained one by one."""
        return not self.structured_only

    @classmethod
    def from_scores(cls, model: nn.Module, scores: Mapping[str, Tensor], **fields: Any) -> SptConfig:
        """The configuration with the plan for these scores (of `vision_peft.sensitivity`) and the other fields.

        Raises:
            ValueError: scores that do not belong to the model, a budget that is none for it (too large, below what is
                always trained, near no total), a rank above a matrix's side.
        """
        return selection.with_plan(cls(**fields), model, scores)


def spt_config(model: nn.Module, loader: Any, loss: Any = None, **fields: Any) -> SptConfig:
    """Score ``model`` on the batches of ``loader`` and return the configuration with the plan for its budget.

    Args:
        model: the model that will be adapted, left as it was.
        loader: shuffled batches of the task's training data, ``(inputs, labels)`` unless ``loss`` reads them.
        loss: ``loss(model, batch)``; cross-entropy if not given.
        **fields: of `SptConfig`, ``budget`` and ``structured`` among them.

    Raises:
        ValueError: as of `sensitivity` and `SptConfig.from_scores`.
    """
    return selection.choose(SptConfig(**fields), model, loader, loss)

"""What tasks that sort inputs into classes share: loss, evaluation and head."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ByClass:
    """Inputs into classes, by cross-entropy; judged by top-1 accuracy on the test part.

    Attributes:
        input_name: what a batch calls the inputs, beside `label`.
        data: the data section, which has `label_smoothing`.
    """

    metric: ClassVar[str] = "accuracy"
    input_name: ClassVar[str]
    data: Any

    def loss(self, model: Callable[[Tensor], Tensor], batch: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy of one batch, float32 `[]`."""
        logits = model(batch[self.input_name]).float()
        return F.cross_entropy(logits, batch["label"], label_smoothing=self.data.label_smoothing)

    def evaluate(self, model: Callable[[Tensor], Tensor], batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sums over the batches, to be added up over processes: `correct`, `loss` and `count`, float64 `[]`."""
        correct, loss, count = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for batch in batches:
            logits = model(batch[self.input_name]).float()
            correct += (logits.argmax(-1) == batch["label"]).sum().cpu()
            loss += F.cross_entropy(logits, batch["label"], reduction="sum").double().cpu()
            count += len(logits)
        return {"correct": correct, "loss": loss, "count": count}

    def figures(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Accuracy and mean loss from the sums of `evaluate`."""
        count = sums["count"].item()
        return {"accuracy": sums["correct"].item() / count, "loss": sums["loss"].item() / count}

    def head(self, model: nn.Module) -> list[str]:
        """Names of the classifier's modules, for counting parameters with and without it."""
        names: Any = cast(Any, model).pretrained_cfg["classifier"]
        return [names] if isinstance(names, str) else list(names)

"""Sensitivity: the sum of squared gradients, and a model that is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from peft_kernels.sensitivity import sensitivity


class Net(nn.Module):
    """A batch norm, dropout, a linear layer used twice, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer, self.head = nn.BatchNorm1d(6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop, self.unused = nn.Dropout(0.3), nn.Parameter(torch.ones(2))
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.training)
        return self.head(self.drop(self.layer(self.layer(self.norm(x)).relu())))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(count: int = 3, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def by_hand(model: nn.Module, groups: list[list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """Squared gradients of each group's mean loss, added up."""
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for group in groups:
        loss = torch.stack([F.cross_entropy(model(x), y) for x, y in group]).mean()
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for name, gradient in zip(scores, found, strict=True):
            scores[name] += 0 if gradient is None else gradient**2
    return scores


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, score in found.items():
        assert score.dtype == torch.float32
        assert not score.requires_grad
        torch.testing.assert_close(score, expected[name], rtol=1e-5, atol=1e-9, msg=name)


def test_scores_are_the_sum_of_squared_gradients() -> None:
    data = batches()
    expected = by_hand(net().eval(), [[batch] for batch in data])
    same(sensitivity(net(), data, scoring_mode="eval"), expected)
    same(sensitivity(net(), data, num_batches=2, scoring_mode="eval"), by_hand(net().eval(), [[b] for b in data[:2]]))
    assert expected["unused"].abs().sum() == 0


def test_gradients_of_parts_of_a_batch_are_averaged_before_they_are_squared() -> None:
    data = batches(4)
    found = sensitivity(net(), data, num_batches=2, accumulate=2, scoring_mode="eval")
    same(found, by_hand(net().eval(), [data[:2], data[2:]]))


def test_gradients_of_single_samples_are_squared() -> None:
    data = batches(2)
    singles = [[(x[i : i + 1], y[i : i + 1])] for x, y in data for i in range(len(x))]
    same(sensitivity(net(), data, per_sample=True, scoring_mode="eval"), by_hand(net().eval(), singles))


def test_training_mode_is_random_under_its_seed_alone() -> None:
    one, two = (sensitivity(net(), batches(), seed=5) for _ in range(2))
    other = sensitivity(net(), batches(), seed=6)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_any_loss_of_any_batch() -> None:
    data = [{"picture": x, "label": y} for x, y in batches()]
    found = sensitivity(
        net(), data, lambda model, batch: F.cross_entropy(model(batch["picture"]), batch["label"]), scoring_mode="eval"
    )
    same(found, by_hand(net().eval(), [[batch] for batch in batches()]))


def test_half_precision_is_squared_in_float32() -> None:
    model = nn.Linear(4, 2, bias=False).to(torch.bfloat16)
    x = torch.full((1, 4), 1e-5, dtype=torch.bfloat16)
    found = sensitivity(model, [x], lambda model, batch: model(batch).float().sum() * 1e-20)["weight"]
    assert found.dtype == torch.float32
    assert (sensitivity(model, [x], lambda model, batch: model(batch).sum())["weight"] > 0).all()


def state(model: Net) -> tuple[Any, ...]:
    return (
        {
            name: (p.tolist(), p.requires_grad, None if p.grad is None else p.grad.tolist())
            for name, p in model.named_parameters()
        },
        {name: buffer.tolist() for name, buffer in model.named_buffers()},
        [(name, module.training) for name, module in model.named_modules()],
        [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],  # type: ignore[attr-defined]
        torch.get_rng_state().tolist(),
    )


def prepared() -> Net:
    model = net()
    model.norm.eval()
    model.head.requires_grad_(False)
    model.layer.weight.grad = torch.ones(6, 6)
    return model


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_model_is_left_as_it_was(mode: str) -> None:
    model = prepared()
    before = state(model)
    scores = sensitivity(model, batches(), scoring_mode=mode)
    assert state(model) == before
    assert set(model.seen) == {mode == "train"}
    assert scores["head.weight"].sum() > 0  # scored although it was frozen


def broken(model: nn.Module, batch: Any) -> Tensor:
    model(batch[0]).sum().backward()
    raise RuntimeError("out of luck")


def test_model_is_left_as_it_was_after_an_error() -> None:
    model = prepared()
    before = state(model)
    with pytest.raises(RuntimeError, match="out of luck"):
        sensitivity(model, batches(), broken)
    assert state(model) == before


def infinite(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).sum() * torch.inf


def overflowing(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) * 1e25).sum() * 1e-3


def failing_later() -> Iterator[tuple[Tensor, Tensor]]:
    yield from batches(1)
    yield torch.full((4, 6), torch.nan), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"loader": []}, "the loader gave 0 batches; at least 1 are needed"),
        ({"loader": batches(1), "accumulate": 2}, "the loader gave 1 batches; at least 2"),
        ({"loader": batches(), "loss": infinite}, "the loss of batch 0 is"),
        ({"loader": failing_later()}, "the loss of batch 1 is nan"),
        ({"loader": batches(), "loss": overflowing}, "the scores of '.*' hold NaN or infinity"),
        (
            {"loader": batches(), "loss": lambda m, b: torch.ones(())},
            "batch 0 depends on none of the scored parameters",
        ),
        ({"loader": [{"x": 1}]}, r"a batch must be a pair \(inputs, labels\); found dict"),
        (
            {"loader": batches(), "parameters": ["layer.wieght"]},
            "no parameter 'layer.wieght' .did you mean 'layer.weight'",
        ),
        ({"loader": batches(), "parameters": []}, "there is nothing to score"),
        ({"loader": batches(), "scoring_mode": "test"}, "scoring_mode must be one of train, eval; found 'test'"),
        ({"loader": batches(), "num_batches": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_scored_is_refused_and_changes_nothing(arguments: dict[str, Any], said: str) -> None:
    model = prepared()
    before = state(model)
    with pytest.raises(ValueError, match=said):
        sensitivity(model, **arguments)
    assert state(model) == before


def test_memory_is_one_copy_of_the_weights_and_one_gradient() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8)))
    one, x = 256 * 256 * 4, torch.randn(2, 256)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        sensitivity(model, [x], lambda model, batch: model(batch).square().sum())
    assert record.profiler is not None
    results: Any = record.profiler.kineto_results
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    assert peak >= 8 * one  # the scores themselves were seen
    assert peak < 10.5 * one

"""The measured peak is what the step's tensors say, to the byte."""

import torch
from torch import nn

from peft_runs.memory import bytes_of, bytes_of_model, bytes_of_optimizer, highest_level

CPU = torch.device("cpu")


def test_what_is_freed_before_the_peak_does_not_count() -> None:
    with highest_level(CPU) as level:
        first = torch.empty(3_000_000, dtype=torch.uint8)
        del first
        second = torch.empty(2_000_000, dtype=torch.uint8)
        third = torch.empty(2_500_000, dtype=torch.uint8)
        del second, third
    assert level == [4_500_000]


def test_step_of_a_linear_layer() -> None:
    """At the peak there are the gradients of output and weight, the loss, and the gradient it begins with."""
    linear = nn.Linear(600, 800, bias=False)
    x = torch.randn(500, 600)
    with highest_level(CPU) as level:
        linear(x).relu().sum().backward()
    assert level == [4 * (500 * 800 + 600 * 800 + 1 + 1)]


def test_shared_storage_counts_once() -> None:
    tensor = torch.zeros(10, 10)
    assert bytes_of([tensor, tensor[2:], tensor.T]) == 400


def test_model_and_optimizer() -> None:
    model = nn.BatchNorm1d(8)
    optimizer = torch.optim.AdamW(model.parameters())
    assert bytes_of_optimizer(optimizer) == 0
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert bytes_of_model(model) == 4 * 8 * 4 + 8  # weight, bias, two statistics; a counter
    assert bytes_of_optimizer(optimizer) == 2 * (2 * 8 * 4 + 4)  # two moments and the step, of two parameters

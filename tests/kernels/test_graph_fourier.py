"""The fused graph Fourier filter against its reference and against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peft_kernels.ops import Filter, Spectra, graph_fourier
from peft_kernels.ops.graph_fourier import graph_fourier_reference

CASES = [(1, 4, (1,), 0), (4, 6, (3,), 1), (3, 6, (6, 2, 3), 2), (4, 8, (1, 4), 1)]


def case(r: int, tokens: int, runs: tuple[int, ...], prefix: int) -> tuple[Tensor, Spectra, list[Tensor]]:
    generator = torch.Generator().manual_seed(r + tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(2)])
    local = [torch.linalg.qr(draw(2, tokens // run, run, run))[0] for run in runs]
    spectra = Spectra(torch.linalg.qr(draw(2, tokens, tokens))[0], local, order, order.argsort(-1))
    own = [1 + 0.1 * draw(r), draw(r), draw(r, r), draw(r), 1 + 0.1 * draw(r), draw(r)]
    return draw(2, prefix + tokens, r).requires_grad_(), spectra, [value.requires_grad_() for value in own]


def filters(own: tuple[Tensor, ...]) -> tuple[Filter, Filter]:
    gamma1, beta1, weight, bias, gamma2, beta2 = own
    return Filter(gamma1, beta1, weight, bias), Filter(gamma2, beta2, weight, bias)


@pytest.mark.parametrize("vertex", [False, True])
@pytest.mark.parametrize("branch", ["both", "whole", "local"])
@pytest.mark.parametrize("sizes", CASES)
def test_values_and_gradients(sizes: tuple[int, int, tuple[int, ...], int], branch: str, vertex: bool) -> None:
    s, spectra, own = case(*sizes)
    if branch == "whole":
        spectra = Spectra(spectra.whole, (), None, None)
    elif branch == "local":
        spectra = spectra._replace(whole=None)
    found = graph_fourier(s, spectra, *filters(tuple(own)), vertex)
    expected = graph_fourier_reference(s, spectra, *filters(tuple(own)), vertex)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    probe = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        torch.autograd.grad((y * probe).sum(), [s, *own], allow_unused=True, materialize_grads=True)
        for y in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [(1, 4, (1,), 0), (4, 4, (4,), 2), (3, 4, (2, 4), 1)])
def test_finite_differences(sizes: tuple[int, int, tuple[int, ...], int]) -> None:
    s, spectra, own = case(*sizes)
    assert torch.autograd.gradcheck(lambda s, *own: graph_fourier(s, spectra, *filters(own)), (s, *own))


def test_compiled_it_gives_the_same() -> None:
    s, spectra, own = case(3, 4, (2, 4), 1)
    found = []
    run = torch.compile(graph_fourier, backend="aot_eager", fullgraph=True)
    for call in (graph_fourier, run):
        y = call(s, spectra, *filters(tuple(own)))
        found.append((y, *torch.autograd.grad(y.square().sum(), [s, *own])))
    torch.testing.assert_close(found[1], found[0])


def test_bases_of_other_clouds_are_refused() -> None:
    s, spectra, own = case(3, 4, (2,), 1)
    with pytest.raises(ValueError, match="2 clouds of 4 tokens; found 1 sequences of 5"):
        graph_fourier(s[:1], spectra, *filters(tuple(own)))
    with pytest.raises(ValueError, match="needs a basis"):
        graph_fourier(s, Spectra(None, (), None, None), *filters(tuple(own)))

"""Deformable attention: the operator against its formula in value and gradient, what it keeps, and what it refuses."""

import pytest
import torch
from torch import Tensor

from peft_kernels.ops import deformable_attention
from peft_kernels.ops.deformable import deformable_attention_grid, deformable_attention_reference, sampled
from tests.kernels.delta_cases import assert_same
from tests.kernels.test_kernel_delta_memory import kept_shapes

Shapes = list[tuple[int, int]]
CASES = [
    # batch, queries, heads, points, width, shapes
    pytest.param(1, 12, 2, 4, 6, [(3, 5)], id="one level"),
    pytest.param(3, 7, 2, 3, 5, [(6, 4), (3, 5), (2, 2)], id="three levels"),
    pytest.param(65, 2, 1, 1, 1, [(1, 1)], id="batch of 65, one cell"),
    pytest.param(2, 1, 3, 2, 12, [(1, 9)], id="one row"),
    pytest.param(2, 0, 3, 2, 4, [(4, 4)], id="no query"),
    pytest.param(0, 3, 3, 2, 4, [(4, 4)], id="no picture"),
]


def arguments(
    batch: int, queries: int, heads: int, points: int, width: int, shapes: Shapes, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, places of which a third lie outside, and weights."""
    generator = torch.Generator().manual_seed(batch + queries)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width, dtype=torch.float64, generator=generator)
    places = torch.rand(batch, queries, heads, len(shapes), points, 2, dtype=torch.float64, generator=generator)
    weights = torch.randn(places.shape[:-1], dtype=torch.float64, generator=generator)
    return tuple(t.to(dtype).requires_grad_() for t in (value, places * 1.6 - 0.3, weights))  # type: ignore[return-value]


@pytest.mark.parametrize("block", [4, 1 << 16])
@pytest.mark.parametrize(("batch", "queries", "heads", "points", "width", "shapes"), CASES)
def test_matches_its_formula(batch, queries, heads, points, width, shapes, block, monkeypatch):
    monkeypatch.setattr(sampled, "BLOCK", block)
    value, places, weights = arguments(batch, queries, heads, points, width, shapes)
    for way in (deformable_attention, deformable_attention_grid):
        expected = deformable_attention_reference(value, shapes, places, weights)
        assert_same(way(value, shapes, places, weights), expected, [value, places, weights], (1e-12, 1e-11))


def test_float32_is_as_close_as_its_digits():
    given = arguments(2, 50, 4, 4, 6, [(7, 9)], torch.float32)
    exact = tuple(t.detach().double().requires_grad_() for t in given)
    found, expected = (deformable_attention(v, [(7, 9)], p, w) for v, p, w in (given, exact))
    for gradient, truth in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), exact), strict=True
    ):
        assert (gradient.double() - truth).abs().max() < 1e-5 * truth.abs().max()
    assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_summed_in_float32(dtype):
    value, places, weights = arguments(2, 20, 2, 4, 6, [(5, 6)], torch.float32)
    half = value.detach().to(dtype).requires_grad_()
    found = deformable_attention(half, [(5, 6)], places, weights)
    expected = deformable_attention(half.detach().float(), [(5, 6)], places, weights)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
    assert torch.autograd.grad(found.float().sum(), half)[0].dtype == dtype


def test_gradients_agree_with_finite_differences():
    shapes: Shapes = [(3, 4), (2, 3)]
    value, places, weights = arguments(2, 3, 2, 2, 2, shapes)
    with torch.no_grad():  # clear of the cells' borders, where the sum has a corner
        scale = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
        pixel = places * scale - 0.5
        places.copy_((pixel.floor() + 0.1 + 0.8 * (pixel - pixel.floor()) + 0.5) / scale)
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_attention(v, shapes, p, w), (value, places, weights))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone_is_the_same_as_among_all(wanted):
    value, places, weights = arguments(2, 5, 2, 3, 4, [(4, 5)])
    every = torch.autograd.grad(deformable_attention(value, [(4, 5)], places, weights).sum(), (value, places, weights))
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate((value, places, weights))]
    deformable_attention(alone[0], [(4, 5)], alone[1], alone[2]).sum().backward()
    assert torch.equal(alone[wanted].grad, every[wanted])  # type: ignore[arg-type]
    assert [t.grad is None for t in alone].count(True) == 2


def test_places_that_are_no_numbers_give_no_numbers_and_read_nothing_else():
    value, places, weights = arguments(1, 4, 1, 2, 3, [(3, 3)])
    with torch.no_grad():
        places[0, 0, 0, 0, 0] = torch.nan
        places[0, 1, 0, 0, 0] = torch.inf
    y = deformable_attention(value, [(3, 3)], places, weights)
    assert y[0, 0].isnan().all()
    assert y[0, 1:].isfinite().all()


def test_only_the_arguments_are_kept():
    given = arguments(1, 30, 2, 4, 6, [(5, 5)], torch.float32)
    y, shapes = kept_shapes(lambda: deformable_attention(given[0], [(5, 5)], *given[1:]))
    assert sorted(shapes) == sorted(tuple(t.shape) for t in given)
    y.sum().backward()


def test_compiled_is_the_same():
    value, places, weights = arguments(2, 6, 2, 3, 4, [(4, 5)])
    compiled = torch.compile(deformable_attention, backend="aot_eager", fullgraph=True)
    expected = deformable_attention(value, [(4, 5)], places, weights)
    assert_same(compiled(value, [(4, 5)], places, weights), expected, [value, places, weights], (1e-12, 1e-11))


def test_exported_reads_by_grid_sample():
    class Attention(torch.nn.Module):
        def forward(self, value: Tensor, places: Tensor, weights: Tensor) -> Tensor:
            return deformable_attention(value, [(4, 5)], places, weights)

    given = tuple(t.detach() for t in arguments(2, 6, 2, 3, 4, [(4, 5)]))
    program = torch.export.export(Attention(), given)
    assert any("grid_sampler" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*given), deformable_attention(given[0], [(4, 5)], *given[1:]))


def test_arguments_that_do_not_fit_are_named():
    value, places, weights = arguments(1, 4, 2, 3, 5, [(3, 3)])
    with pytest.raises(ValueError, match=r"the 12 cells of maps of \[\(3, 4\)\]; found \[1, 9, 2, 5\]"):
        deformable_attention(value, [(3, 4)], places, weights)
    with pytest.raises(ValueError, match=r"locations must be .* here \[1, 4, 2, 1, 3, 2\]; found \[1, 4, 1, 1, 3, 2\]"):
        deformable_attention(value, [(3, 3)], places[:, :, :1], weights)
    with pytest.raises(ValueError, match=r"weights must be \[1, 4, 2, 1, 3\], as locations; found \[1, 4, 2, 1, 2\]"):
        deformable_attention(value, [(3, 3)], places, weights[..., :2])

"""The fused operators of the kernelised delta give what the formulas give, in value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from peft_kernels.ops import DeltaSpec, delta_sparse, gated_conv, gated_linear
from peft_kernels.ops.kernel_delta import reference
from tests.kernels.delta_cases import TOLERANCE, assert_close, assert_same, random_slice, tensors_of

DTYPES = st.sampled_from([torch.float64, torch.float32])
SPECS = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from(["piecewise_linear", "mix"]),
        "gate": st.sampled_from(["none", "magnitude", "soft", "hard"]),
        "sparsity": st.sampled_from([0.0, 1e-9, 0.3, 0.5, 0.9, 1.0]),
        "p": st.sampled_from([2.0, 1.0, 3.0]),
        "coeff": st.sampled_from([(0.1, -0.1), (-0.2, 0.1, 0.3), (0.5,), (-0.5,)]),
        "scale": st.sampled_from([1.0, -0.5]),
    }
)
fixed = settings(derandomize=True, deadline=None, max_examples=60)


@fixed
@given(DTYPES, SPECS, SPECS, st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 9), st.data())
def test_linear_with_two_deltas_matches_the_formulas(dtype, one, two, rows, columns, d, chunk, data):
    torch.manual_seed(0)
    out = data.draw(st.integers(rows, rows + 20))
    start = data.draw(st.integers(0, out - rows))  # the second overlaps the first, touches it or lies apart
    slices = [
        random_slice(rows, columns, d, dtype, **one),
        random_slice(rows, columns, data.draw(st.integers(1, 4)), dtype, start=start, **two),
    ]
    x = torch.randn(2, 3, columns, dtype=dtype, requires_grad=True)
    weight = torch.randn(out, columns, dtype=dtype, requires_grad=data.draw(st.booleans()))
    bias = torch.randn(out, dtype=dtype, requires_grad=data.draw(st.booleans()))
    inputs = [t for t in (x, weight, bias, *tensors_of(slices)) if t.requires_grad]
    found = gated_linear(x, weight, bias, slices, chunk_rows=chunk)
    assert_same(found, reference.gated_linear(x, weight, bias, slices), inputs, TOLERANCE[dtype])


@fixed
@given(DTYPES, SPECS, st.lists(st.booleans(), min_size=4, max_size=4), st.booleans(), st.booleans(), st.integers(1, 50))
def test_branch_under_dropout_and_drop_path_matches_the_formulas(dtype, spec, kept, with_weight, with_drop, tokens):
    torch.manual_seed(0)
    slices = [random_slice(7, 12, 3, dtype, **spec), random_slice(7, 12, 3, dtype, start=9, **spec)]
    x = torch.randn(4, tokens, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(16, 12, dtype=dtype)
    drop = torch.rand(x.shape) > 0.3 if with_drop else None
    keep = torch.tensor([kept, [True] * 4])
    expected = F.linear(x, weight) if with_weight else x.new_zeros(4, tokens, 16)
    for part, seen in zip(slices, keep, strict=True):
        branch = F.linear(x if drop is None else x * drop, reference.delta_weight([part], 16, 12))
        expected = expected + 1.5 * branch * seen[:, None, None]
    found = gated_linear(
        x, weight if with_weight else None, None, slices, drop=drop, keep=keep, gain=1.5, out_features=16
    )
    assert_same(found, expected, [x, *tensors_of(slices)], TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 0, 12), (2, 2, 2, 12)])
@pytest.mark.parametrize("with_drop", [False, True])
def test_any_number_of_leading_dimensions_is_served(shape, with_drop):
    part = random_slice(9, 12, 3, torch.float64, sparsity=0.5)
    x, bias = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(9, dtype=torch.float64)
    weight, drop = torch.randn(9, 12, dtype=torch.float64), torch.rand(shape) > 0.2 if with_drop else None
    S = reference.delta_weight([part], 9, 12)
    expected = F.linear(x, weight, bias.requires_grad_()) + (x if drop is None else x * drop) @ S.T
    found = gated_linear(x, weight, bias, [part], drop=drop)
    assert_same(found, expected, [x, bias, *tensors_of([part])], (1e-9, 1e-9))


@pytest.mark.parametrize("kernel", ["linear", "sigmoid", "rbf"])
@pytest.mark.parametrize("gate", ["none", "magnitude", "soft"])
def test_other_kernels_match_the_formulas(kernel, gate):
    part = random_slice(23, 17, 4, torch.float64, kernel=kernel, gate=gate, sparsity=0.4)
    x = torch.randn(5, 17, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(23, 17, dtype=torch.float64)
    found = gated_linear(x, weight, None, [part], chunk_rows=5)
    assert_same(found, reference.gated_linear(x, weight, None, [part]), [x, *tensors_of([part])], (1e-9, 1e-9))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("with_weight", [True, False])
def test_convolution_matches_the_formulas(dimensions, groups, with_weight):
    shape = (6, 4 // groups, *(3,) * dimensions)
    columns = torch.Size(shape[1:]).numel()
    slices = [
        random_slice(6, columns, 3, torch.float64, sparsity=0.5),
        random_slice(2, columns, 2, torch.float64, sparsity=0.2, start=3),
    ]
    x = torch.randn(2, 4, *(7,) * dimensions, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True) if with_weight else None
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    S = reference.delta_weight(slices, 6, columns).view(shape)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
    expected = convolve(x, S if weight is None else weight + S, bias, 2, 1, 1, groups)
    found = gated_conv(x, weight, bias, slices, 2, 1, 1, groups, weight_shape=shape)
    inputs = [t for t in (x, weight, bias, *tensors_of(slices)) if t is not None]
    assert_same(found, expected, inputs, (1e-9, 1e-9))


def test_dense_delta_matches_the_formulas():
    slices = [random_slice(300, 90, 4, torch.float64, sparsity=s, start=i * 200) for i, s in enumerate((0.5, 0.9))]
    found = delta_sparse(slices, 510, 90)
    assert_same(found, reference.delta_weight(slices, 510, 90), tensors_of(slices), (1e-9, 1e-9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1.0, 0.02])  # 0.02: survivors of some 1e-6, which float16 alone would lose
def test_half_precision_computes_the_delta_in_float32(dtype, spread):
    part = random_slice(40, 32, 4, sparsity=0.5, spread=spread)
    x = torch.randn(64, 32, requires_grad=True)
    S = reference.kernel_delta(*part).delta_sparse
    tolerance = 8 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype=dtype):
        found = gated_linear(x, None, None, [part], out_features=40)
    assert found.dtype == dtype
    assert_close(found, x @ S.T, tolerance)
    gradients = torch.autograd.grad(found.float().square().sum(), [x, part.A, part.B])
    truths = torch.autograd.grad((x @ S.T).square().sum(), [x, part.A, part.B])
    for gradient, truth in zip(gradients, truths, strict=True):
        if spread == 1.0 or dtype == torch.bfloat16:  # float16 gradients of so small an output need a loss scale
            assert_close(gradient, truth, 4 * tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_layers_match_float32(dtype):
    part = random_slice(8, 18, 3, sparsity=0.5)
    half = part._replace(A=part.A.detach().to(dtype), B=part.B.detach().to(dtype))
    S = delta_sparse([half], 8, 18)
    assert S.dtype == torch.float32
    x, weight, bias = torch.randn(5, 18), torch.randn(8, 18), torch.randn(8)
    found = gated_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), [half])
    assert_close(found, F.linear(x, weight + S, bias), 8 * torch.finfo(dtype).eps)
    image, kernel = torch.randn(2, 2, 6, 6), weight.view(8, 2, 3, 3)
    found = gated_conv(image.to(dtype), kernel.to(dtype), bias.to(dtype), [half], padding=1)
    assert_close(found, F.conv2d(image, kernel + S.view_as(kernel), bias, padding=1), 8 * torch.finfo(dtype).eps)


def test_points_get_gradients_when_x_does_not():
    part = random_slice(9, 6, 2, sparsity=0.5)
    gated_linear(torch.randn(4, 6), torch.randn(9, 6), None, [part]).sum().backward()
    assert part.A.grad is not None
    assert part.A.grad.abs().max() > 0


def test_x_gets_a_gradient_when_the_points_are_frozen():
    part = random_slice(9, 6, 2, sparsity=0.5)
    frozen = part._replace(A=part.A.detach(), B=part.B.detach())
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(9, 6)
    assert_same(
        gated_linear(x, weight, None, [frozen]), reference.gated_linear(x, weight, None, [frozen]), [x], (1e-6, 1e-6)
    )


def test_second_derivatives_are_refused():
    part = random_slice(9, 6, 2, sparsity=0.5)
    x = torch.randn(4, 6, requires_grad=True)
    (gx,) = torch.autograd.grad(gated_linear(x, None, None, [part], out_features=9).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gx.sum().backward()


@pytest.mark.parametrize(
    ("name", "value"),
    [("sparsity", 1.5), ("sparsity", float("nan")), ("kernel", "cubic"), ("gate", "open"), ("p", 0.0), ("start", -1)],
)
def test_constants_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        DeltaSpec(**{name: value})


def test_slices_that_do_not_fit_are_refused():
    part = random_slice(9, 6, 2)
    for found, match in (
        (part._replace(A=part.A[:1]), "A and B"),
        (part._replace(A=part.A[:, :5]), "A must have 6 rows"),
        (part._replace(spec=DeltaSpec(start=4)), "beyond the 12 output features"),
        (part._replace(spec=DeltaSpec(kernel="rbf"), A=part.A[:1], B=part.B[:1]), "scalars of kernel rbf"),
    ):
        with pytest.raises(ValueError, match=match):
            gated_linear(torch.randn(2, 6), torch.randn(12, 6), None, [found])

"""PointGST on point transformers: what it trains, what its spectra depend on, how it is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional as F

from peft_kernels.registry import methods
from vision_peft import PointGstConfig, bound_spectra, cloud_spectra, cloud_spectrum
from vision_peft.methods.pointgst.adapter import Pcsa
from vision_peft.methods.pointgst.spectra import Basis

from .tiny_clouds import adapted, checkpointing_changes_no_gradient, clouds, parts, tiny

_PART = re.compile(r"pcsa_adapter(?=\.default\.(down|up|adapt1|norm_ly))|cls_[a-z]+|label_conv|propagation_0|convs|bns")
COUNTS = [
    ("point_mae", 15, 22_093_327, 622_831),
    ("point_mae", 40, 22_099_752, 629_256),
    ("point_gpt_l", 15, 309_971_311, 2_429_647),
    ("point_gpt_l", 40, 309_977_736, 2_436_072),
    ("point_mae_parts", 50, 27_063_730, 5_593_234),
]


@pytest.mark.parametrize(("name", "classes", "base", "trainable"), COUNTS)
def test_counts_of_the_paper(name: str, classes: int, base: int, trainable: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes)
        assert sum(p.numel() for p in model.parameters()) == base
        model = get_peft_model(model, PointGstConfig())  # type: ignore[arg-type]
    trained = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == trainable
    kinds = {_PART.search(key)[0] for key in trained}  # type: ignore[index]
    cls = {"cls_token", "cls_pos", "cls_head"} | ({"cls_norm"} if "gpt" in name else set())
    head = {"label_conv", "propagation_0", "convs", "bns"} if "parts" in name else cls
    assert kinds == {"pcsa_adapter"} | head


@pytest.mark.parametrize("name", ["point_mae", "point_gpt_s"])
def test_it_starts_at_the_base(name: str) -> None:
    with torch.no_grad():  # torch's attention takes another path where nothing has a gradient
        torch.testing.assert_close(adapted(name, start=True)(clouds()), tiny(name)(clouds()), rtol=0, atol=0)


def test_a_cloud_is_the_same_alone_and_beside_a_tiny_one() -> None:
    model, x = adapted(), clouds()
    beside = torch.cat([x[:1], 0.01 * x[1:2] + 1])
    torch.testing.assert_close(model(x[:1]), model(beside)[:1], rtol=1e-5, atol=1e-6)


def test_the_scope_of_the_batch_mixes_clouds() -> None:
    model, x = adapted(scale_scope="batch"), clouds()
    beside = torch.cat([x[:1], 0.01 * x[1:2] + 1])
    assert not torch.allclose(model(x[:1]), model(beside)[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["point_mae", "point_gpt_s"])
def test_checkpointing_reads_the_spectra_of_its_own_clouds(name: str) -> None:
    checkpointing_changes_no_gradient(lambda: adapted(name))


def branch(**fields: Any) -> tuple[Pcsa, Basis]:
    """An adapter that changes its input, in float64."""
    torch.manual_seed(0)
    basis = Basis(local_sizes=(4,), dtype=torch.float64)
    return Pcsa(6, 3, basis, **fields).double(), basis


@pytest.mark.parametrize("prefix", [0, 2])
def test_an_adapter_by_itself_reads_tokens_and_centres(prefix: int) -> None:
    adapter, basis = branch()
    tokens, spectra = torch.rand(2, prefix + 8, 6, dtype=torch.float64), cloud_spectra(clouds(2, 8).double(), basis)
    changed = adapter(tokens, spectra)
    assert changed.shape == tokens.shape
    torch.testing.assert_close(changed[:, :prefix], adapter.up(F.silu(adapter.down(tokens[:, :prefix]))))
    adapter.start_at_the_base()
    assert not adapter(tokens, spectra).any()


def test_the_order_of_frequencies_does_not_matter_in_the_papers_orientation() -> None:
    adapter, basis = branch()
    spectra, z = cloud_spectra(clouds(2, 8).double(), basis), torch.rand(2, 9, 6, dtype=torch.float64)
    shuffled = spectra._replace(whole=spectra.whole[..., torch.randperm(8)], local=[u.flip(-1) for u in spectra.local])  # type: ignore[index]
    torch.testing.assert_close(adapter.branch(z, shuffled), adapter.branch(z, spectra))
    vertex = branch(vertex=True)[0]
    assert not torch.allclose(vertex.branch(z, shuffled), vertex.branch(z, spectra))


def test_patches_in_another_order_give_their_tokens_in_that_order() -> None:
    adapter, basis = branch()
    centers, z = clouds(2, 8).double(), torch.rand(2, 9, 6, dtype=torch.float64)
    turn = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    one = adapter.branch(z, cloud_spectra(centers, basis))
    other = adapter.branch(torch.cat([z[:, :1], z[:, 1:][:, turn]], 1), cloud_spectra(centers[:, turn], basis))
    torch.testing.assert_close(other, torch.cat([one[:, :1], one[:, 1:][:, turn]], 1), rtol=0, atol=1e-9)


def test_a_pass_that_failed_leaves_no_spectra() -> None:
    model, x = adapted(), clouds()
    expected = model(x)
    wrong = cloud_spectra(clouds(3, 12), Basis(local_sizes=(4,)))  # of twelve patches
    with pytest.raises(ValueError, match="those of 3 clouds of 12 tokens"):
        with bound_spectra(model, wrong):
            model(x)
    with pytest.raises(ValueError, match="finite"):
        model(x * torch.nan)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_only_the_last_map_learns_at_first() -> None:
    model = adapted(start=True)
    model(clouds()).square().sum().backward()
    own = {name: p.grad for name, p in model.named_parameters() if "norm2.pcsa_adapter" in name}
    assert {name.split(".")[-2] for name, grad in own.items() if grad is not None and grad.any()} == {"up"}


def test_given_spectra_replace_computed_ones() -> None:
    model, x = adapted(), clouds()
    centers = model.get_base_model().group_divider(x)[1]  # type: ignore[operator]
    own = cloud_spectra(centers, PointGstConfig(local_size=4).basis)
    with bound_spectra(model, own):
        torch.testing.assert_close(model(x), adapted()(x))
    with bound_spectra(model, own._replace(whole=own.whole.flip(0))):  # type: ignore[union-attr]
        assert not torch.allclose(model(x), adapted()(x), rtol=1e-4)


def test_graphs_of_several_sizes_add_up() -> None:
    adapter, _ = branch()
    spectra = cloud_spectra(clouds(2, 8).double(), Basis(local_sizes=(4, 2), dtype=torch.float64))
    z = torch.rand(2, 9, 6, dtype=torch.float64)

    def of(*local: Tensor) -> Tensor:
        return adapter.branch(z, spectra._replace(local=local))

    none = adapter.branch(z, spectra._replace(local=(), order=None, inverse=None))
    four, two = spectra.local
    torch.testing.assert_close(of(four, two) - none, of(four) - none + of(two) - none)
    assert not torch.allclose(of(two), none)


@pytest.mark.parametrize("name", ["point_mae", "point_gpt_s"])
def test_features_asked_for_by_themselves_are_the_adapted_ones(name: str) -> None:
    def gradients(forward: Any) -> tuple[Tensor, list[Tensor]]:
        model = adapted(name)
        model.get_base_model().set_grad_checkpointing()  # type: ignore[operator]
        y = forward(model.get_base_model(), clouds())
        y.square().sum().backward()
        return y, [p.grad for p in model.parameters() if p.grad is not None]

    whole = gradients(lambda model, x: model(x))
    parts = gradients(lambda model, x: model.forward_head(model.forward_features(x)))
    torch.testing.assert_close(parts, whole)


def test_parts_are_labelled_and_all_that_is_trained_gets_a_gradient() -> None:
    x, categories = clouds(), torch.tensor([0, 5, 15])
    model = get_peft_model(parts(), PointGstConfig(r=4, local_size=4))  # type: ignore[arg-type]
    torch.testing.assert_close(model.eval()(x, categories), parts()(x, categories), rtol=1e-5, atol=1e-6)
    model = get_peft_model(parts(), PointGstConfig(r=4, local_size=4, init_weights=False)).train()  # type: ignore[arg-type]
    model(x, categories).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


@pytest.mark.parametrize("method", ["full", "bitfit", "ssf", "lora", "snell", "adapter_plus"])
def test_other_methods_adapt_points_too(method: str) -> None:
    known = methods()[method]
    fields = {"ssf": {"init_std": 0.0}, "snell": {"init": "identity"}, "adapter_plus": {"init": "lora"}}.get(method, {})
    model = known.attach(tiny(), **fields).eval()
    torch.testing.assert_close(model(clouds()), tiny()(clouds()), rtol=1e-4, atol=1e-5)
    moved: dict[str, Any] = {"init_lora_weights" if method == "lora" else "init_weights": False}
    model = known.attach(tiny(), **moved).train()
    model(clouds()).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_autocast_keeps_the_spectra_in_float32() -> None:
    model, x = adapted(), clouds()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    torch.testing.assert_close(low.float(), model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("branches", ["global", "local"])
def test_one_branch_trains_all_its_parameters(branches: str) -> None:
    model = adapted(branches=branches)
    model(clouds()).square().sum().backward()
    own = {name: p.grad for name, p in model.named_parameters() if "pcsa_adapter" in name}
    assert own
    assert all(grad is not None and grad.abs().sum() > 0 for grad in own.values())


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_moving_turning_and_scaling_a_cloud_leaves_its_graph(factor: float) -> None:
    centers = clouds(2, 16).double()
    turn = torch.linalg.qr(torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))[0]
    basis = Basis(local_sizes=(), dtype=torch.float64)
    one, other = (cloud_spectra(c, basis).whole for c in (centers, factor * (centers @ turn + 5)))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    values = [cloud_spectrum(c.float()).frequencies for c in (centers[0], factor * (centers[0] @ turn + 5))]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)

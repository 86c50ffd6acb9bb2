"""Side inputs: every layer reads the values of its own forward pass, recomputed or not."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_kernels.context import SideInputs

from .reading_model import WAYS, Reader, batch, control, expected, gradients, model, run


@pytest.mark.parametrize("same_batch", [True, False])
@pytest.mark.parametrize("how", WAYS)
def test_two_forwards_then_one_backward(how: str, same_batch: bool) -> None:
    first, second = batch(), batch() if same_batch else batch(3)
    if same_batch:
        second = first
    net = model(how)
    (run(net, first, control(5)) + run(net, second, control(6))).backward()
    torch.testing.assert_close(gradients(net), expected((first, control(5)), (second, control(6))))


@pytest.mark.parametrize("how", WAYS)
def test_backward_inside_another_bind(how: str) -> None:
    net = model(how)
    loss = run(net, batch(), control(5))
    with net.side.bind(control=control(6)):
        other = net(batch(3)).square().sum()
        loss.backward()
        assert torch.equal(net.side.get("control"), control(6))
        other.backward()
    torch.testing.assert_close(gradients(net), expected((batch(), control(5)), (batch(3), control(6))))


@pytest.mark.parametrize("how", WAYS)
def test_backward_in_another_thread(how: str) -> None:
    net = model(how)
    thread = threading.Thread(target=run(net, batch(), control(5)).backward)
    thread.start()
    thread.join()
    torch.testing.assert_close(gradients(net), expected((batch(), control(5))))


@pytest.mark.parametrize("how", WAYS)
def test_backward_of_another_pass_inside_a_forward(how: str) -> None:
    net = model(how)
    earlier = run(net, batch(), control(5))
    waiting = [earlier]
    handle = net.blocks[0].register_forward_pre_hook(lambda *_: waiting.pop().backward() if waiting else None)
    run(net, batch(3), control(6)).backward()
    handle.remove()
    torch.testing.assert_close(gradients(net), expected((batch(), control(5)), (batch(3), control(6))))


@pytest.mark.parametrize("how", WAYS)
def test_gradient_reaches_the_value(how: str) -> None:
    values = [control(5).requires_grad_() for _ in range(2)]
    for value, way in zip(values, ["plain", how], strict=True):
        run(model(way), batch(), value).backward()
    torch.testing.assert_close(values[1].grad, values[0].grad)


def test_reentrant_checkpointing_raises_instead_of_reading_another_value() -> None:
    net = model("reentrant")
    with net.side.bind(control=control(5)):
        loss = net(batch().requires_grad_()).sum()
    with net.side.bind(control=control(6)), pytest.raises(LookupError, match="use_reentrant=False"):
        loss.backward()


def test_segment_behind_other_operations_raises_instead_of_reading_another_value() -> None:
    side = SideInputs()
    block = Reader(side)
    side.attach(nn.Identity(), segments=[block])
    with side.bind(control=control(5)):
        loss = checkpoint(lambda x: block(2 * x), batch(), use_reentrant=False).sum()
    with side.bind(control=control(6)), pytest.raises(LookupError, match="begin with an attached segment"):
        loss.backward()


def test_one_tensor_in_two_living_passes_raises_instead_of_reading_another_value() -> None:
    side, x = SideInputs(), batch()
    block = Reader(side)
    side.attach(nn.Identity(), segments=[block])
    losses = []
    for seed in (5, 6):
        with side.bind(control=control(seed)):
            losses.append(checkpoint(block, x, use_reentrant=False).sum())
    with pytest.raises(LookupError, match="same tensor"):
        losses[0].backward()


def test_finished_passes_do_not_stand_in_the_way() -> None:
    side, x = SideInputs(), batch()
    block = Reader(side)
    side.attach(nn.Identity(), segments=[block])
    for seed in (5, 6):
        with side.bind(control=control(seed)):
            checkpoint(block, x, use_reentrant=False).sum().backward()


@pytest.mark.parametrize("how", ["plain", "each block"])
def test_value_put_during_the_pass_reaches_later_segments_alone(how: str) -> None:
    class Doubling(Reader):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.side.put("control", 2 * self.side.get("control"))
            return y

    net, twin = model(how), model("plain")
    net.blocks[0].__class__ = Doubling
    run(net, batch(), control(5)).backward()
    with twin.side.bind(control=control(5)):
        x = twin.blocks[0](batch())
    with twin.side.bind(control=2 * control(5)):
        twin.blocks[1](x).square().sum().backward()
    torch.testing.assert_close(gradients(net), gradients(twin))
    with pytest.raises(LookupError, match="not bound"):
        net.side.get("control")


def test_inner_bind_adds_and_hides() -> None:
    side = SideInputs()
    with side.bind(basis=1, control=2):
        with side.bind(control=3):
            assert (side.get("basis"), side.get("control")) == (1, 3)
        assert side.get("control") == 2


def test_value_put_in_the_owners_call_ends_with_it() -> None:
    side, owner = SideInputs(), nn.Identity()
    side.attach(owner)
    owner.register_forward_hook(lambda *_: side.put("basis", 1), prepend=True)
    owner(batch())
    with pytest.raises(LookupError, match="not bound"):
        side.get("basis")


def test_put_outside_any_pass_raises() -> None:
    with pytest.raises(LookupError, match="no forward pass"):
        SideInputs().put("basis", 1)


def test_missing_value_names_the_nearest_one() -> None:
    side = SideInputs()
    with side.bind(control=1), pytest.raises(LookupError, match="did you mean 'control'"):
        side.get("controls")


@pytest.mark.parametrize("how", WAYS)
def test_compiled_model_has_the_same_gradients(how: str) -> None:
    torch._dynamo.reset()
    net = model(how)
    compiled = torch.compile(net, backend="aot_eager")
    losses = []
    for seed in (5, 6):
        with net.side.bind(control=control(seed)):
            losses.append(compiled(batch(seed)).square().sum())
    torch.stack(losses).sum().backward()
    torch.testing.assert_close(gradients(net), expected((batch(5), control(5)), (batch(6), control(6))))


def test_checkpointed_timm_model() -> None:
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        net = cast(VisionTransformer, timm.create_model("test_vit", num_classes=3).eval())
        net.set_grad_checkpointing(checkpointed)
        side = SideInputs()
        side.attach(net, segments=net.blocks)
        for block in net.blocks:
            cast(nn.Module, block.norm2).register_forward_hook(lambda _, __, y, side=side: y * side.get("gain"))
        images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))
        losses = []
        for gain in (0.5, 2.0):
            with side.bind(gain=gain):
                losses.append(net(images).sum())
        torch.stack(losses).sum().backward()
        grads.append(gradients(net))
    torch.testing.assert_close(grads[1], grads[0])

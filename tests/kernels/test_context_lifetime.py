"""Side inputs live as long as their forward pass and its graph: not longer, not elsewhere."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch

from .reading_model import WAYS, batch, control, expected, gradients, model, run


@pytest.mark.parametrize("how", WAYS)
def test_nothing_outlives_the_graph(how: str) -> None:
    net, x, value = model(how), batch(), control(5)
    seen = weakref.ref(value)
    loss = run(net, x, value)
    del value
    gc.collect()
    assert seen() is not None
    loss.backward()
    del loss
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("how", WAYS)
def test_nothing_stays_after_an_exception(how: str) -> None:
    net, x, value = model(how), batch(), control(5)
    seen = weakref.ref(value)
    handle = net.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(net, x, value)
    del value
    gc.collect()
    assert seen() is None
    handle.remove()
    with pytest.raises(LookupError, match="not bound"):
        net(x)
    run(net, x, control(6)).backward()
    torch.testing.assert_close(gradients(net), expected((x, control(6))))


def test_nothing_stays_after_an_exception_in_backward() -> None:
    net, value = model("each block"), control(5)
    seen = weakref.ref(value)
    loss = run(net, batch(), value)
    handle = net.blocks[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    del loss, value
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("how", WAYS)
def test_an_interrupted_pass_does_not_reach_the_next(how: str) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    net = model(how)
    handle = net.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(net, batch(), control(5))
    handle.remove()
    with pytest.raises(LookupError):
        net(batch())
    run(net, batch(), control(6)).backward()
    torch.testing.assert_close(gradients(net), expected((batch(), control(6))))


def test_nothing_is_kept_without_gradients() -> None:
    net, value, x = model("each block"), control(5), batch()
    seen = weakref.ref(value)
    with torch.no_grad():
        outputs = [run(net, x, value), run(model("plain"), x, value)]
    del value
    assert torch.equal(*outputs)
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copy_is_empty_and_works_alone(duplicate: Any) -> None:
    net = model("each block")
    with net.side.bind(control=control(5)):
        twin = duplicate(net)
        with pytest.raises(LookupError):
            twin(batch())
    assert twin.side is twin.blocks[0].side
    assert twin.side is not net.side
    (run(twin, batch(), control(5)) + run(twin, batch(3), control(6))).backward()
    torch.testing.assert_close(gradients(twin), expected((batch(), control(5)), (batch(3), control(6))))
    assert not gradients(net)


def test_removed_hooks_leave_a_plain_model() -> None:
    net = model("plain")
    for handle in net.handles:
        handle.remove()
    hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in net.modules()]
    assert not any(before or after for after, before in hooks)


def test_models_do_not_share_values() -> None:
    first, second = model("plain"), model("plain")
    with first.side.bind(control=control(5)), pytest.raises(LookupError):
        second(batch())

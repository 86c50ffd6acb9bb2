"""Layers that read another text: identities that hold whatever the model, and what is refused."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import diffusion_peft as dp
from diffusion_peft.localization.projections import Slots, Window
from tests.diffusion.true_configs import ARCHITECTURES, small

ROWS = 2


def call(name: str, model: Any, text: Tensor, rows: int = 1, timestep: int = 7) -> Tensor:
    """The denoiser on a fixed batch of two, repeated ``rows`` times."""
    noise = torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(1)).repeat(rows, 1, 1, 1)
    with torch.no_grad():
        if name == "sd15":
            return model(noise, timestep, text).sample
        if name == "flux":
            given = {**ARCHITECTURES[name].inputs(), "encoder_hidden_states": text}
            for key in ("pooled_projections", "guidance", "timestep"):
                given[key] = given[key][:1].repeat_interleave(len(noise), 0)
            return model(**{**given, "hidden_states": noise.flatten(1).view(len(noise), 32, 8)[:, :16]}).sample
        pooled = torch.ones(len(noise), 10)
        times = torch.full((len(noise),), timestep)
        return model(noise, text, pooled, times).sample


@pytest.fixture(params=["sd15", "sd3", "flux"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> Any:
    return small(name).eval()


@pytest.fixture
def texts() -> tuple[Tensor, Tensor]:
    """Source and target."""
    generator = torch.Generator().manual_seed(2)
    source, target = torch.randn(2, ROWS, 5, 12, generator=generator)
    return source, target


def test_target_rows_run_as_without_patch(name: str, model: Any, texts: tuple[Tensor, Tensor]) -> None:
    both = torch.cat(texts)
    plain = call(name, model, both, 2)
    with dp.patch_text(model, [1], pictures=ROWS):
        patched = call(name, model, both, 2)
    assert torch.equal(plain[ROWS:], patched[ROWS:])
    assert not torch.allclose(plain[:ROWS], patched[:ROWS])


def test_the_same_text_changes_nothing(name: str, model: Any, texts: tuple[Tensor, Tensor]) -> None:
    both = torch.cat([texts[0], texts[0]])
    plain = call(name, model, both, 2)
    with dp.patch_text(model, [0, 1], pictures=ROWS):
        torch.testing.assert_close(call(name, model, both, 2), plain)


def test_the_model_is_as_before(name: str, model: Any, texts: tuple[Tensor, Tensor]) -> None:
    plain = call(name, model, texts[0])
    modules = dict(model.named_modules())
    with pytest.raises(ZeroDivisionError), dp.patch_text(model, [1], pictures=ROWS, start_step=1):
        raise ZeroDivisionError
    assert dict(model.named_modules()) == modules
    assert torch.equal(call(name, model, texts[0]), plain)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_all_layers_of_a_unet_read_the_target(texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd15").eval()
    source, target = texts
    with dp.patch_text(model, [layer.index for layer in dp.text_layers(model)], target=target):
        found = call("sd15", model, source)
    torch.testing.assert_close(found, call("sd15", model, target))


def test_injection_and_lockstep_agree(texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd15").eval()
    source, target = texts
    with dp.patch_text(model, [1, 2], target=target, heads={2: [1]}):
        injected = call("sd15", model, source)
    with dp.patch_text(model, [1, 2], pictures=ROWS, heads={2: [1]}):
        beside = call("sd15", model, torch.cat(texts), 2)[:ROWS]
    torch.testing.assert_close(injected, beside)


def test_named_rows_alone_read_the_target(texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd15").eval()
    source, target = texts
    rows = {1: torch.tensor([False, True]), 2: torch.tensor([True, False])}
    with dp.patch_text(model, [1, 2], target=target, rows=rows):
        found = call("sd15", model, source)
    for row, layer in ((1, 1), (0, 2)):
        with dp.patch_text(model, [layer], target=target):
            torch.testing.assert_close(found[row], call("sd15", model, source)[row])


def test_an_adapter_on_the_projections_stays_active(texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd15").eval()
    source, target = texts
    dp.add_adapter(model, LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False))
    with dp.patch_text(model, [layer.index for layer in dp.text_layers(model)], target=target):
        found = call("sd15", model, source)
    torch.testing.assert_close(found, call("sd15", model, target))


def test_the_negative_half_may_stay(name: str, model: Any, texts: tuple[Tensor, Tensor]) -> None:
    source, target = texts
    text = torch.cat([target, source, source, target])  # [negative, positive] of two runs
    plain = call(name, model, text, 4)
    with dp.patch_text(model, [1], pictures=ROWS, patch_uncond=False):
        found = call(name, model, text, 4)
    assert torch.equal(found[:ROWS], plain[:ROWS])
    assert not torch.allclose(found[2 * ROWS : 3 * ROWS], plain[2 * ROWS : 3 * ROWS])


def test_several_generations_take_from_one(name: str, model: Any, texts: tuple[Tensor, Tensor]) -> None:
    source, target = texts
    slots = {layer: Slots(ROWS, 3, {layer + 1: 0}) for layer in (0, 1)}
    with dp.patch_text(model, [0, 1], slots=slots):
        found = call(name, model, torch.cat([target, source, source]), 3).split(ROWS)
    for layer in (0, 1):
        with dp.patch_text(model, [layer], pictures=ROWS):
            alone = call(name, model, torch.cat([source, target]), 2)[:ROWS]
        torch.testing.assert_close(found[layer + 1], alone)


def test_only_steps_of_the_window_are_replaced(texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd15").eval()
    source, target = texts
    changed = []
    with dp.patch_text(model, [1], target=target, start_step=1, end_step=3):
        for timestep in (900, 600, 600, 300, 100, 900):  # a scheduler of second order; then the next generation
            changed.append(call("sd15", model, source, timestep=timestep))
    plain = [call("sd15", model, source, timestep=timestep) for timestep in (900, 600, 600, 300, 100, 900)]
    same = [torch.equal(*pair) for pair in zip(changed, plain, strict=True)]
    assert same == [True, False, False, False, True, True]


@pytest.mark.parametrize(("start", "end"), [(-1, None), (3, 2)])
def test_impossible_windows_are_refused(start: int, end: int | None) -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        Window(start, end)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of"),
        ({"pictures": 2, "target": torch.zeros(2, 5, 12)}, "give one of"),
        ({"pictures": 2, "heads": {1: [99]}}, "has the heads 0 to"),
        ({"pictures": 2, "heads": {0: [0]}}, "not among"),
        ({"target": torch.zeros(2, 6, 12)}, "attn2: the target text has 2 rows of 6 tokens"),
        ({"target": torch.zeros(3, 5, 12)}, "attn2: the target text has 3 rows"),
        ({"pictures": 2, "rows": {1: torch.ones(2, dtype=torch.bool)}}, "`rows` says which rows read `target`"),
        ({"pictures": 3}, "attn2: 2 rows are no 2 generations of 3 pictures"),
    ],
)
def test_unusable_settings_are_refused(given: dict[str, Any], message: str, texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd15").eval()
    with pytest.raises(ValueError, match=message), dp.patch_text(model, [1], **given):
        call("sd15", model, texts[0])


def test_joint_attention_takes_no_injection(texts: tuple[Tensor, Tensor]) -> None:
    model = small("sd3")
    with pytest.raises(ValueError, match="must run beside"), dp.patch_text(model, [0], target=texts[1]):
        pass


@pytest.mark.parametrize("beside", [False, True], ids=["inject", "lockstep"])
def test_checkpointing_gives_the_same_gradients(beside: bool, texts: tuple[Tensor, Tensor]) -> None:
    source, target = (text.double().requires_grad_() for text in texts)
    model = small("sd15").double().train()
    weight: Any = model.get_submodule(dp.text_layers(model)[1].projection_names[0]).weight
    found = []
    for again in (False, True):
        model.enable_gradient_checkpointing() if again else model.disable_gradient_checkpointing()
        output = patched(model, source, target, beside)
        found.append((output, *torch.autograd.grad(output.square().sum(), (target, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)
    assert all(part.abs().max() > 0 for part in found[0])


def test_each_pass_is_computed_again_as_it_ran(texts: tuple[Tensor, Tensor]) -> None:
    source, target = texts
    model = small("sd15").train()
    model.enable_gradient_checkpointing()
    noise = torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def gradient(backward_inside: bool) -> Tensor:
        with dp.patch_text(model, [1], target=target, start_step=1):  # the first pass runs as it is
            loss: Any = sum(model(noise, timestep, source).sample.square().sum() for timestep in (9, 7))
            if backward_inside:
                return torch.autograd.grad(loss, noise)[0]
        return torch.autograd.grad(loss, noise)[0]

    inside, outside = gradient(True), gradient(False)
    model.disable_gradient_checkpointing()
    wanted = gradient(True)
    torch.testing.assert_close(inside, wanted)
    torch.testing.assert_close(outside, wanted)


def patched(model: Any, source: Tensor, target: Tensor, beside: bool) -> Tensor:
    """The source's rows with the target's text in layer 1, by either way."""
    noise = torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(source)
    text = torch.cat([source, target]) if beside else source
    way: dict[str, Any] = {"pictures": ROWS} if beside else {"target": target}
    with dp.patch_text(model, [1], **way):
        return model(noise.repeat(1 + beside, 1, 1, 1), 7, text).sample[:ROWS]


@pytest.mark.parametrize("beside", [False, True], ids=["inject", "lockstep"])
def test_gradients_of_the_target_are_finite_differences(beside: bool, texts: tuple[Tensor, Tensor]) -> None:
    source, target = (text.double() for text in texts)
    model = small("sd15").double().eval().requires_grad_(False)
    weight: Any = model.get_submodule(dp.text_layers(model)[1].projection_names[1]).weight
    weight.requires_grad_()
    target.requires_grad_()
    gradients = torch.autograd.grad(patched(model, source, target, beside).square().sum(), (target, weight))
    for tensor, gradient in zip((target, weight), gradients, strict=True):
        way = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        sums = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                tensor += step * way
                sums.append(patched(model, source, target, beside).square().sum())
                tensor -= step * way
        assert ((sums[0] - sums[1]) / 2e-5).item() == pytest.approx((gradient * way).sum().item(), rel=1e-6)


@pytest.mark.parametrize("beside", [False, True], ids=["inject", "lockstep"])
def test_a_compiled_model_reads_the_target(beside: bool, texts: tuple[Tensor, Tensor]) -> None:
    source, target = texts
    model = small("sd15").eval().requires_grad_(False)
    layer = dp.text_layers(model)[1].name
    wanted, plain = patched(model, source, target, beside), call("sd15", model, source)
    with torch.no_grad():
        model.get_submodule(layer).compile(backend="eager")
        torch.testing.assert_close(call("sd15", model, source), plain)
        torch.testing.assert_close(patched(model, source, target, beside), wanted)
        torch.testing.assert_close(call("sd15", model, source), plain)
    assert not torch.allclose(wanted, plain)


def test_half_precision_takes_the_targets_rows_bit_by_bit(name: str, texts: tuple[Tensor, Tensor]) -> None:
    model, both = small(name).eval().bfloat16(), torch.cat(texts).bfloat16()
    kept: list[tuple[Tensor, Tensor]] = []
    with dp.patch_text(model, [1], pictures=ROWS):
        projection = model.get_submodule(dp.text_layers(model)[1].projection_names[0])
        projection.register_forward_hook(lambda module, args, y: kept.append((module.base(args[0]), y)))
        found = half(name, model, both)
    [(own, replaced)] = kept
    tokens = texts[0].shape[1]
    assert replaced.dtype == torch.bfloat16
    assert torch.equal(replaced[:ROWS, :tokens], own[ROWS:, :tokens])
    assert found.isfinite().all()
    assert torch.equal(found[ROWS:], half(name, model, both)[ROWS:])


def half(name: str, model: Any, text: Tensor) -> Tensor:
    """`call` in the model's precision."""
    with torch.autocast("cpu", torch.bfloat16):
        return call(name, model, text, 2)


def test_fused_projections_are_refused() -> None:
    model = small("sd15")
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"attn2: its projections are fused"), dp.patch_text(model, [1], pictures=2):
        pass


def test_the_picture_keeps_its_own_tokens_in_a_single_block() -> None:
    model = small("flux").eval()
    seen = []
    text = torch.randn(2 * ROWS, 5, 12, generator=torch.Generator().manual_seed(2))
    with dp.patch_text(model, [1], pictures=ROWS):
        keys = model.single_transformer_blocks[0].attn.to_k
        keys.register_forward_hook(lambda module, args, y: seen.append((module.base(args[0]), y)))
        call("flux", model, text, 2)
    [(own, found)] = seen
    assert torch.equal(found[:ROWS, :5], own[ROWS:, :5])
    assert torch.equal(found[:ROWS, 5:], own[:ROWS, 5:])
    assert torch.equal(found[ROWS:], own[ROWS:])

"""Localisation of text layers: patched layers and runs of UNets and joint attention, and the measures of its tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from diffusion_peft.localization import patch_text, text_layers
from diffusion_peft.localization.changes import psnr, squared_error, wrapped_squared_error
from diffusion_peft.localization.texts import characters, f1, words
from peft_kernels.ops import guided

from ..comparison import Tolerance
from ..harness import Results
from ..vectors import Vectors, load

INNER = r"(layer|cache)\..*"  # compared beside the usual names


def tolerance(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-6 absolute in float64 (diffusers computes features of timesteps in float32), 1e-4 in float32."""
    return Tolerance(1e-6 if dtype == torch.float64 else 1e-4, absolute=True)


def exact(name: str, dtype: torch.dtype) -> Tolerance:
    """1e-12 absolute."""
    return Tolerance(1e-12, absolute=True)


def metrics(case: Vectors) -> Results:
    """Agreement of texts and errors of pictures, as the authors compute them and as they are."""
    texts = list(zip(case.options["predicted_texts"], case.options["reference_texts"], strict=True))
    found = {}
    for name, agreement in (("char", characters), ("word", words)):
        agreed = [agreement(*pair) for pair in texts]
        for place, part in enumerate(("precision", "recall", "accuracy")):
            found[f"output.{name}_{part}"] = torch.tensor([one[place] for one in agreed], dtype=torch.float64)
        found[f"output.{name}_f1_of_means"] = torch.tensor([f1(agreed)], dtype=torch.float64)
    pictures = case["input.images_a"], case["input.images_b"]
    for name, error in (("true", squared_error(*pictures)), ("uint8_wrapped", wrapped_squared_error(*pictures))):
        found |= {f"output.mse_{name}": error, f"output.psnr_{name}": psnr(error)}
    return {"formulas": found}


class _Model:
    """The file's denoiser, called with one text, or with source and target beside each other."""

    def __init__(self, case: Vectors) -> None:
        weights = load(case.path.with_name(case.options["weights"]))
        made: Any = getattr(diffusers, weights.options["architecture"]).from_config(weights.options["config"])
        made.load_state_dict(weights.tensors)
        floats = [value.dtype for name, value in case.tensors.items() if name.startswith("input.encoder")]
        self.model: Any = nn.Module.to(made, floats[0]).eval().requires_grad_(False)
        self.layers = text_layers(self.model)
        order = case.options.get("layer_order")
        if order and order != [layer.name for layer in self.layers]:
            raise ValueError(f"the layers are {[layer.name for layer in self.layers]}, the file's {order}")
        self.unet = hasattr(self.model, "down_blocks")

    def __call__(self, latents: Tensor, timestep: Tensor, text: Tensor, **more: Tensor) -> Tensor:
        if not self.unet:
            times = timestep.expand(len(latents))
            return self.model(latents, text, more["pooled"], times, return_dict=False)[0]
        conditions = {"added_cond_kwargs": more} if more else {}
        return self.model(latents, timestep, text, **conditions, return_dict=False)[0]


def _names(case: Vectors, prefix: str, count: int) -> dict[str, dict[str, Any]]:
    """The arguments of `patch_text` for every expected tensor that is patched, by its name."""
    options = case.options
    heads = {int(layer): numbers for layer, numbers in options.get("heads", {}).items()}
    found = {}
    for name in case.below(prefix.rpartition(".")[0]):
        rest = f"{prefix.rpartition('.')[0]}.{name}".removeprefix(prefix)
        if not f"output.{name}".startswith(prefix):
            continue
        start = 0 if rest.endswith("_from_step0") else options.get("start_step", 0)
        rest = rest.removesuffix("_from_step0").removeprefix("_")
        more: dict[str, Any] = {"start_step": start}
        if rest == "heads":
            more |= {"layers": list(heads), "heads": heads}
        elif rest == "all":
            more["layers"] = list(range(count))
        elif rest:
            more["layers"] = [int(number) for number in re.findall(r"\d+", rest)]
        else:
            more["layers"] = options["layers"]
        found[f"output.{name}"] = more
    return found


def patched_layers(case: Vectors) -> Results:
    """One forward pass of a UNet, with the target injected and with source and target in one batch."""
    model = _Model(case)
    count = len(model.layers)
    sample, time = case["input.sample"], case["input.timestep"]
    source, target = case["input.encoder_source"], case["input.encoder_target"]
    more = {
        name: case[f"input.{given}"]
        for name, given in (("text_embeds", "text_embeds_source"), ("time_ids", "time_ids"))
        if f"input.{given}" in case
    }
    twice = {name: torch.cat([value, value]) for name, value in more.items()}
    rows = len(sample)

    def inject(given: dict[str, Any], source: Tensor, target: Tensor) -> Tensor:
        with patch_text(model.model, target=target, **given):
            return model(sample, time, source, **more)

    def lockstep(given: dict[str, Any], source: Tensor, target: Tensor) -> Tensor:
        with patch_text(model.model, pictures=rows, **given):
            return model(torch.cat([sample, sample]), time, torch.cat([source, target]), **twice)[:rows]

    results: dict[str, dict[str, Tensor]] = {}
    for way, patched in (("inject", inject), ("lockstep", lockstep)):
        found = results[way] = {}
        for name, given in _names(case, "output.patched", count).items():
            found[name] = patched(given, source, target)
        everywhere = {"layers": list(range(count))}
        found["output.target_prompt_only_in_cross_attention"] = patched(everywhere, source, target)
        found |= _inside(case, model, patched, source, target, rows)
    results["plain"] = {"output.source": model(sample, time, source, **more)}
    results["plain"]["output.target"] = model(sample, time, target, **more)
    return results


def _inside(case: Vectors, model: _Model, patched: Any, source: Tensor, target: Tensor, rows: int) -> dict[str, Tensor]:
    """What goes on in one patched layer, and the gradients of the whole."""
    name = case.options.get("module") or case.options.get("layer_of_key_value")
    if name is None:
        return {}
    layer = next(layer for layer in model.layers if layer.name == name)
    layers = case.options.get("layers") or next(of for of in case.options["sets"] if layer.index in of)
    attention: Any = model.model.get_submodule(name)
    seen: dict[str, Tensor] = {}

    def watch(attention: Any, args: tuple[Any, ...]) -> None:
        seen["layer.hidden_in"] = args[0][:rows]
        for what, projection in zip(("key", "value"), layer.projections, strict=True):
            handles.append(getattr(attention, projection).register_forward_hook(keep(what)))

    def keep(what: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, y: Tensor) -> None:
            seen[f"layer.{what}"] = y[:rows]
            seen[f"layer.{what}_text"] = y[:rows].unflatten(-1, (layer.heads, -1)).transpose(1, 2)

        return hook

    def out(_: Any, args: Any, y: Tensor) -> None:
        seen["layer.out"] = y[:rows]

    handles = [attention.register_forward_pre_hook(watch), attention.register_forward_hook(out)]
    weights = {
        what.removeprefix("grad."): attention.get_parameter(what.removeprefix("grad.")).requires_grad_()
        for what in case.tensors
        if what.startswith("grad.to_")
    }
    texts = {"encoder_source": source.clone().requires_grad_(), "encoder_target": target.clone().requires_grad_()}
    y = patched({"layers": layers}, *texts.values())
    for handle in handles:
        handle.remove()
    if "probe" in case:
        wanted = {**texts, **weights}
        gradients = torch.autograd.grad((y * case["probe"]).sum(), list(wanted.values()))
        seen |= {f"grad.{what}": gradient for what, gradient in zip(wanted, gradients, strict=True)}
    for weight in weights.values():
        weight.requires_grad_(False)
    return {what: value.detach() for what, value in seen.items()}


def patched_denoising(case: Vectors) -> Results:
    """A run of a few steps under guidance; on joint attention source and target can only go in one batch."""
    model = _Model(case)
    pictures = len(case["input.latents"])
    joint = not model.unet

    def texts(*roles: str) -> dict[str, Tensor]:
        """Negative and positive text of the runs beside each other."""
        order = ["negative"] * len(roles) + list(roles)
        given = {"text": torch.cat([case[f"input.encoder_{role}"] for role in order])}
        if joint:
            return {**given, "pooled": torch.cat([case[f"input.pooled_{role}"] for role in order])}
        pooled = ["source" if role == "target" else role for role in order]  # nothing that is patched depends on it
        given["text_embeds"] = torch.cat([case[f"input.text_embeds_{role}"] for role in pooled])
        return {**given, "time_ids": case["input.time_ids"].repeat(len(order), 1)}

    def lockstep(given: dict[str, Any]) -> Tensor:
        with patch_text(model.model, pictures=pictures, **given):
            return _denoised(case, model, texts("source", "target"))[:, :pictures]

    def inject(given: dict[str, Any]) -> Tensor:
        with patch_text(model.model, target=texts("target")["text"], **given):
            return _denoised(case, model, texts("source"))

    results: dict[str, dict[str, Tensor]] = {
        "plain": {"output.latents_source": _denoised(case, model, texts("source"))}
    }
    with torch.no_grad():
        for way, run in (("lockstep", lockstep), ("inject", inject)) if model.unet else (("lockstep", lockstep),):
            names = _names(case, "output.latents_patched", len(model.layers))
            results[way] = {name: run(given) for name, given in names.items()}
        if joint:
            results["plain"]["output.latents_target"] = _denoised(case, model, texts("target"))
            results["lockstep"] |= _target_rows(case, model, texts("source", "target"), pictures)
    return results


def _target_rows(case: Vectors, model: _Model, text: dict[str, Tensor], pictures: int) -> dict[str, Tensor]:
    """The target's keys and values in one block, and its latents, taken from a patched run."""
    layer = model.layers[case.options["cache_layer"]]
    attention: Any = model.model.get_submodule(layer.name)
    seen: dict[str, list[Tensor]] = {"key": [], "value": []}
    with patch_text(model.model, [layer.index], pictures=pictures):
        for what, projection in zip(seen, layer.projections, strict=True):

            def keep(_: Any, args: Any, y: Tensor, to: list[Tensor] = seen[what]) -> None:
                rows = y.view(2, 2, pictures, *y.shape[1:])[:, 1].flatten(0, 1)
                to.append(rows.unflatten(-1, (layer.heads, -1)).transpose(1, 2))

            getattr(attention, projection).register_forward_hook(keep)
        latents = _denoised(case, model, text)[:, pictures:]
    found = {f"cache.{what}_text": torch.stack(steps) for what, steps in seen.items()}
    return {**found, "output.latents_target": latents}


@torch.no_grad()
def _denoised(case: Vectors, model: _Model, given: dict[str, Tensor]) -> Tensor:
    """The latents of every run after every step."""
    runs = len(given["text"]) // (2 * len(case["input.latents"]))
    x = torch.cat([case["input.latents"]] * runs)
    steps: list[Tensor] = []
    for number, time in enumerate(case["input.timesteps"]):
        negative, positive = model(torch.cat([x, x]), time, **given).chunk(2)
        x = _stepped(case, number, x, guided(positive, negative, case.options["guidance_scale"]))
        steps.append(x)
    return torch.stack(steps)


def _stepped(case: Vectors, number: int, x: Tensor, output: Tensor) -> Tensor:
    """Euler for flows, otherwise DDIM."""
    if "input.sigmas" in case:
        sigmas = case["input.sigmas"]
        return x + (sigmas[number + 1] - sigmas[number]) * output
    powers: Sequence[Tensor] = [*case["input.alphas_cumprod_at_timesteps"], torch.ones((), dtype=x.dtype)]
    now, then = powers[number], powers[number + 1]
    clean = (x - (1 - now).sqrt() * output) / now.sqrt()
    return then.sqrt() * clean + (1 - then).sqrt() * output

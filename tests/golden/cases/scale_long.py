"""ScaleLong: skips of tokens scaled by constants and by one gate."""

from __future__ import annotations

from diffusion_peft.methods.scale_long import SkipGate, constant_scale

from ..harness import Results
from ..vectors import Vectors
from .attached import assign, probed

PARTS = {"W1": "down.weight", "b1": "down.bias", "W2": "up.weight", "b2": "up.bias"}


def token_skips(case: Vectors) -> Results:
    """Every skip, from the shallowest on."""
    skips = {name: value.clone().requires_grad_() for name, value in case.below("input").items() if "skip." in name}
    gate = SkipGate(case.options["tokens"], case.options["r"]).to(case["param.W1"].dtype)
    own = {name: gate.get_parameter(path) for name, path in PARTS.items()}
    assign({own[name]: value for name, value in case.below("param").items()})
    found, loss = {}, 0
    for i in range(len(skips)):
        skip = skips[f"skip.{i}"]
        found[f"output.ls.coef.{i}"] = gate(skip)
        found[f"output.ls.{i}"] = gate(skip) * skip
        found[f"output.cs.{i}"] = constant_scale("cs", i, case.options["kappa"]) * skip
        found[f"output.cs_sqrt2.{i}"] = constant_scale("inv_sqrt2", i, 1.0) * skip
        loss = loss + (found[f"output.ls.{i}"] * case[f"input.probe.{i}"]).sum()
    probe = case["input.probe.0"].new_ones(())
    return {"SkipGate": {**found, **probed(loss, probe, {**own, **skips})}}  # type: ignore[arg-type]

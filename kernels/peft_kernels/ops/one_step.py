"""The clean picture from one evaluation of a denoiser, and the noise schedules that it depends on.

With ᾱ_t = Π (1-β), signal α = √ᾱ_t and noise σ = √(1-ᾱ_t), a noised picture is z = α x + σ ε, and the denoiser's
output o stands for ε, for the velocity v = α ε - σ x (Salimans & Ho, ICLR 2022), for x, or, with z = (1-σ) x + σ ε, for
the flow ε - x.
"""

from jaxtyping import Float
from torch import Tensor

from .spectra import at_least_float32

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


def clean_from(
    noised: Float[Tensor, "batch *shape"],
    output: Float[Tensor, "batch *shape"],
    signal: float | Tensor,
    noise: float | Tensor,
    prediction_type: str,
) -> Float[Tensor, "batch *shape"]:
    """x, in float32 at least.

    Args:
        noised: z.
        output: o, of the same shape.
        signal: α, a number or a tensor that broadcasts.
        noise: σ, likewise.
        prediction_type: what o stands for: `epsilon`, `v_prediction`, `sample` or `flow`.

    Raises:
        ValueError: an unknown prediction type, or the noise is to be taken off where there is no signal.
    """
    z, o = at_least_float32(noised), at_least_float32(output)
    if prediction_type == "epsilon":
        if not isinstance(signal, Tensor) and signal == 0:
            raise ValueError("without signal (zero terminal SNR) a prediction of the noise says nothing of the picture")
        return (z - noise * o) / signal
    if prediction_type == "v_prediction":
        return signal * z - noise * o
    if prediction_type == "sample":
        return o
    if prediction_type == "flow":
        return z - noise * o
    raise ValueError(f"a prediction type is one of {', '.join(PREDICTIONS)}; found {prediction_type!r}")


def guided(
    output: Float[Tensor, "batch *shape"], absent: Float[Tensor, "batch *shape"], guidance: float
) -> Float[Tensor, "batch *shape"]:
    """u + g (o - u), with the output u for no caption (Ho & Salimans, *Classifier-Free Diffusion Guidance*, 2021)."""
    return absent + guidance * (output - absent)


def signal_powers(betas: Float[Tensor, "steps"], zero_terminal_snr: bool = False) -> Float[Tensor, "steps"]:
    """ᾱ of every step, float64.

    With `zero_terminal_snr`, √ᾱ is shifted and scaled so that it ends at 0 and begins where it did (Lin et al., *Common
    Diffusion Noise Schedules and Sample Steps are Flawed*, WACV 2024, Algorithm 1).
    """
    powers = (1 - betas.double()).cumprod(0)
    if not zero_terminal_snr:
        return powers
    roots = powers.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()

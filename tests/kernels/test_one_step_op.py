"""The clean picture from one evaluation: a known one is found again, and where it cannot be."""

import pytest
import torch

from peft_kernels.ops import clean_from, guided, signal_powers

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("step", [0, 500, 999])
def test_a_known_picture_is_found_again(prediction_type, step):
    x, noise = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    power = signal_powers(BETAS)[step]
    signal, level = (1 - step / 1000, step / 1000) if prediction_type == "flow" else (power.sqrt(), (1 - power).sqrt())
    output = {
        "epsilon": noise,
        "v_prediction": signal * noise - level * x,
        "sample": x,
        "flow": noise - x,
    }[prediction_type]
    found = clean_from(signal * x + level * noise, output, signal, level, prediction_type)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-10)


def test_signal_of_stable_diffusion_at_the_last_step():
    assert signal_powers(BETAS)[-1].item() == pytest.approx(0.004660098513, abs=1e-12)
    rescaled = signal_powers(BETAS, zero_terminal_snr=True)
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(signal_powers(BETAS)[0].item(), abs=1e-15)


def test_half_precision_is_computed_in_float32():
    z, o = torch.randn(2, 1, 4, 3, 3).half()
    found = clean_from(z, o, 0.068265, 0.997667, "epsilon")
    assert found.dtype == torch.float32
    assert torch.equal(found, clean_from(z.float(), o.float(), 0.068265, 0.997667, "epsilon"))


def test_guidance_of_one_is_the_conditional_output_and_of_zero_the_other():
    o, u = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(guided(o, u, 1.0), o)
    assert torch.equal(guided(o, u, 0.0), u)


def test_what_cannot_be_is_told():
    z = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="without signal"):
        clean_from(z, z, 0.0, 1.0, "epsilon")
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample, flow; found 'velocity'"):
        clean_from(z, z, 0.5, 0.5, "velocity")

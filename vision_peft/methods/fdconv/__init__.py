"""FDConv: frequency dynamic convolution, kernels rebuilt per sample from one spectrum.

Chen, Gu, Li, Yan, Fu: "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025 (arXiv 2503.18783). With
``F`` the spectrum of the weight in n groups ``G`` of frequencies and ``x`` one sample:

    W(x) = fold(irfft2(F · g(x)[G])) ⊙ A(x) ⊙ a_c(x) ⊙ a_f(x) ⊙ a_s(x),    y = conv(bands(x), W(x)) + b

`modulation` makes the factors from the pooled input, `bands` reweighs the input's frequencies, `adapter` holds what is
trained at one layer, `forward` convolves, `layer` and `tuner` attach to a model, `config` holds the settings, `module`
is a layer without PEFT, `authors` translates the authors' states.
"""

from vision_peft.methods.fdconv.authors import from_authors, to_authors
from vision_peft.methods.fdconv.config import FdconvConfig

__all__ = ["FdconvConfig", "from_authors", "to_authors"]

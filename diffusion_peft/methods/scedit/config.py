"""SCEdit's settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffusion_peft.methods.scedit.tuner import SceditTuner
from peft_kernels.config import MethodConfig, require
from peft_kernels.registry import register

STRIDES = [1, 1, 2, 1, 2, 1, 2]


@register(
    "scedit",
    tuner=SceditTuner,
    prefix="scedit_",
    family="diffusion",
    summary="A small MLP on every long skip of a UNet, whose encoder needs no backward pass; steered by pictures",
    paper="Jiang et al., CVPR 2024",
    needs="long skip connections",
)
@dataclass
class SceditConfig(MethodConfig):
    """SCEdit: ``s ← s + scale · (W₂ gelu(W₁ s + b₁) + b₂)`` on the skips of a UNet, just before its decoder reads them.

    Nothing that runs before the skips is trained, so no activation of the encoder is kept and its backward pass does
    not exist. SD 1.5 and 2.1: 19,680,000 parameters, SDXL 9,841,920. With ``control`` a picture steers (CSC-Tuner):
    ``s ← s + scale · (c + W₂ gelu(W₁ (s + c) + b₁) + b₂)`` with ``c`` the picture's features at that skip; 99,111,760
    on SD 1.5 (28,824,400 with ``dense_kernel=1``), 45,930,080 on SDXL with ``pre_out_channels=320, pre_dim_ratio=2``.
    Adapters are summed: each reads the skip as the encoder left it. Indices and lists count the skips in decoder order,
    the deepest first. It starts at the base model, bit for bit.

    Args:
        down_ratio: hidden width by channels, cut off to an integer.
        hidden_sizes: the hidden width at every skip, instead.
        skip_indices: the skips that are edited; all when not given.
        skip_channels: the widths of all skips, found from a UNet's modules, and compared with them when an adapter is
            loaded. For networks of other families: the widths at the blocks that ``target_modules`` names, which are
            called with ``[hidden, skip]`` on their channels.
        scale: strength, of any sign, of all or at every skip; that of a condition too.
        control: whether a picture steers.
        pre_in_channels: channels of the condition image.
        pre_out_channels: of the condition's stem.
        pre_dim_ratio: factor on the stem's inner widths 16, 32 and 96.
        pre_strides: of the stem's seven convolutions; their product is the size of a latent in pixels.
        dense_kernel: of the convolutions that take the condition from skip to skip, 1 or 3; 1 is published as 7.9 % of
            a ControlNet, 3 is what the released weights have.
    """

    down_ratio: float = field(default=1.0, metadata={"help": "Hidden width by channels, in (0, 1]."})
    hidden_sizes: list[int] | None = field(default=None, metadata={"help": "Hidden width at every skip, instead."})
    skip_indices: list[int] | None = field(default=None, metadata={"help": "Skips edited, deepest = 0; else all."})
    skip_channels: list[int] | None = field(default=None, metadata={"help": "Widths of the skips, deepest first."})
    scale: float | list[float] = field(default=1.0, metadata={"help": "Strength, of all or at every skip."})
    control: bool = field(default=False, metadata={"help": "Let a condition image steer."})
    pre_in_channels: int = field(default=3, metadata={"help": "Channels of the condition image."})
    pre_out_channels: int = field(default=256, metadata={"help": "Channels of the condition's stem."})
    pre_dim_ratio: float = field(default=1.0, metadata={"help": "Factor on the stem's inner widths."})
    pre_strides: list[int] = field(
        default_factory=lambda: list(STRIDES), metadata={"help": "Strides of the stem's convolutions."}
    )
    dense_kernel: int = field(default=3, metadata={"help": "Kernel size between the skips, 1 or 3."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.down_ratio <= 1, self, "down_ratio", "in (0, 1]")
        for name in ("hidden_sizes", "skip_indices", "skip_channels"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, list(value))
        if isinstance(self.scale, tuple):
            self.scale = list(self.scale)
        if self.hidden_sizes is not None:
            require(all(size >= 1 for size in self.hidden_sizes), self, "hidden_sizes", "integers >= 1")
        require(self.skip_indices != [], self, "skip_indices", "at least one index, or None for all")
        require(self.pre_in_channels >= 1, self, "pre_in_channels", "at least 1")
        require(self.pre_out_channels >= 1, self, "pre_out_channels", "at least 1")
        require(int(16 * self.pre_dim_ratio) >= 1, self, "pre_dim_ratio", "at least 1/16")
        strides = self.pre_strides = list(self.pre_strides)
        require(len(strides) == 7 and set(strides) <= {1, 2}, self, "pre_strides", "seven strides of 1 or 2")
        require(self.dense_kernel in (1, 3), self, "dense_kernel", "1 or 3")

    def hidden(self, index: int, channels: int) -> int:
        """The hidden width at one skip.

        Raises:
            ValueError: ``down_ratio`` leaves none.
        """
        size = int(channels * self.down_ratio) if self.hidden_sizes is None else self.hidden_sizes[index]
        if size < 1:
            raise ValueError(
                f"SceditConfig.down_ratio {self.down_ratio} leaves no hidden channel of the {channels} of skip {index}"
            )
        return size

"""What differs between pipelines: how each encodes captions, calls its denoiser, and samples from what is encoded.

A caption's encoding is a mapping of named rows, `{"text": [N, L, D], ...}`: one row a caption, so that encodings can be
kept in a table and taken out again by number.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from peft_kernels.data_errors import DataError

Given = dict[str, Tensor]


class Kind:
    """One kind of pipeline; `text` names the parts that are of no use once all captions are encoded."""

    pipelines: ClassVar[tuple[str, ...]]
    part: ClassVar[str] = "unet"
    text: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    limited: ClassVar[bool] = False  # whether the number of tokens can be chosen

    def __init__(self, pipeline: Any, max_tokens: int | None = None):
        if max_tokens is not None and not self.limited:
            raise DataError(f"a {type(pipeline).__name__} has no choice of tokens: leave model.max_tokens null")
        self.pipeline = pipeline
        self.max_tokens = max_tokens
        self.dtype: torch.dtype = self.denoiser.dtype  # of the frozen weights: an adapter's may be of another

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.part)

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def longest(self) -> dict[str, int]:
        """The limit of tokens, for those whose `encode_prompt` has one."""
        return {} if self.max_tokens is None else {"max_sequence_length": self.max_tokens}

    def encode(self, captions: list[str], device: torch.device) -> Given:
        """The captions' rows, on `device`, where the text encoders are."""
        raise NotImplementedError

    def predict(self, model: Any, noised: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        """The denoiser's output for noised latents `[N, C, h, w]` at `timesteps` `[N]`; `framing` `[N, 6]` is among
        `given`: height and width of the picture as it came, top and left of the crop, height and width of the crop."""
        raise NotImplementedError

    def asked(self, given: Given, absent: Given) -> dict[str, Any]:
        """How the pipeline is called for these rows; `absent` are those of the negative captions."""
        raise NotImplementedError

    def sized(self, size: int) -> dict[str, Any]:
        """How the pipeline is told the pictures' size."""
        return {"height": size, "width": size}

    def check_size(self, size: int) -> None:
        """Raise where the denoiser takes no pictures of this size.

        Raises:
            DataError: it does not; what it takes is told.
        """
        self.sized(size)
        step = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1) * self.patch
        if size < 1 or size % step:
            raise DataError(
                f"pictures of a {type(self.pipeline).__name__} have a multiple of {step} pixels, not {size}"
            )

    @property
    def patch(self) -> int:
        """Latents along a side of what the denoiser takes as one."""
        return int(self.denoiser.config.get("patch_size") or 1)

    def release_text(self) -> None:
        """Give the memory of what encodes captions back."""
        self.pipeline.register_modules(**{name: None for name in self.text if hasattr(self.pipeline, name)})

"""HiPA's adapter: PEFT's LoRA on every projection of every attention, 3.3 million parameters as in the paper."""

from dataclasses import dataclass, field

from peft import LoraConfig

from peft_kernels.config import require
from peft_kernels.peft_own import fill
from peft_kernels.registry import Method, offer

ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of joint attention, which has the text's beside them
)


@dataclass
class HipaConfig(LoraConfig):
    """y = W x + (alpha / r) B A x on the attention's projections: PEFT's LoRA, and saved as such.

    With r = 16 Stable Diffusion 2.1 has 3,319,808 trained parameters, 3.3 million as in the paper's Table 1 (0.04 % of
    progressive distillation's).

    Args:
        r: rank.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        target_modules: names of modules; all projections of all attentions when not given.
    """

    r: int = field(default=16, metadata={"help": "Rank of the update."})
    lora_alpha: int = field(default=16, metadata={"help": "The update is scaled by lora_alpha / r."})

    def __post_init__(self) -> None:
        require(self.r >= 1, self, "r", "at least 1")
        if self.target_modules is None:
            self.target_modules = list(ATTENTION)
        super().__post_init__()


offer(
    Method(
        "hipa",
        HipaConfig,
        "diffusion",
        "LoRA on all attentions, trained to draw in one step with all high frequencies (task one_step)",
        "Zhang & Hooi, 2023",
        prepare=fill,
        needs="a denoiser's attention layers",
    )
)

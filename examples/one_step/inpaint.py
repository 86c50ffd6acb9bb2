"""The white part of a mask drawn anew in one step; the rest stays as it is.

python examples/one_step/inpaint.py PIPELINE ADAPTER PICTURE MASK PROMPT OUT.png

From noise, with the picture put back around the mask; a UNet made for inpainting (nine channels) sees it as well.
"""

import sys

import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline

name, adapter, picture, mask, prompt, out = sys.argv[1:]
pipe = AutoPipelineForInpainting.from_pipe(open_pipeline(name))
dp.load_adapter(pipe, adapter)
dp.one_step(pipe, adapter)
image, hole = Image.open(picture).convert("RGB"), Image.open(mask).convert("L")
asked = {"height": image.height, "width": image.width, "strength": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0}
found = pipe(prompt, image=image, mask_image=hole, **asked, generator=torch.Generator().manual_seed(0)).images[0]
Image.composite(found, image, hole).save(out)

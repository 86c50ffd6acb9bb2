"""A picture changed to fit a prompt, in one step. The later the timestep (0 to 999), the less is left of the picture.

python examples/one_step/edit.py PIPELINE ADAPTER PICTURE PROMPT TIMESTEP OUT.png

The adapter is trained for it with --model.t_min 500 or less; ranges of 500 to 999 are our choice, not the paper's.
"""

import sys

import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline

if len(sys.argv) != 7:
    sys.exit(__doc__)
name, adapter, picture, prompt, timestep, out = sys.argv[1:]
pipe = AutoPipelineForImage2Image.from_pipe(open_pipeline(name))
dp.load_adapter(pipe, adapter)
dp.one_step(pipe, adapter, timestep=int(timestep))
asked = {"strength": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0}  # all of the schedule up to the timestep
image = Image.open(picture).convert("RGB")
pipe(prompt, image=image, **asked, generator=torch.Generator().manual_seed(0)).images[0].save(out)

"""A picture made larger: enlarged, noised a little, and cleaned in one step, which adds what is too fine for it.

python examples/one_step/super_resolution.py PIPELINE ADAPTER PICTURE FACTOR PROMPT OUT.png

The adapter is trained for it with --model.t_min 200; timestep 300 is our choice, not the paper's.
"""

import sys

import torch
from diffusers import AutoPipelineForImage2Image
from PIL import Image

import diffusion_peft as dp
from diffusion_peft.pipelines.opening import open_pipeline

if len(sys.argv) != 7:
    sys.exit(__doc__)
name, adapter, picture, factor, prompt, out = sys.argv[1:]
pipe = AutoPipelineForImage2Image.from_pipe(open_pipeline(name))
dp.load_adapter(pipe, adapter)
dp.one_step(pipe, adapter, timestep=300)
small = Image.open(picture).convert("RGB")
large = small.resize((small.width * int(factor), small.height * int(factor)), Image.Resampling.BICUBIC)
asked = {"strength": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0}
pipe(prompt, image=large, **asked, generator=torch.Generator().manual_seed(0)).images[0].save(out)

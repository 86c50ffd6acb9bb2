"""Seconds to attach every method, with its defaults, to a ViT-B/16, and to import `vision_peft` after timm and PEFT.

Process CPU time, one thread, least of several. Attaching: on a copy of the model each time. Importing: in a process of
its own each time, what `import vision_peft` adds to `import timm, peft`.

    python kernels/benchmarks/attach.py [--repeats 3]
"""

import argparse
import copy
import subprocess
import sys
import time
import warnings

import timm
import torch
from measure import write_results
from torch import nn

from peft_kernels.registry import methods

ATTACH_BOUND, IMPORT_BOUND = 0.5, 0.3  # seconds
_IMPORT = """
import time
import peft, timm
start = time.process_time()
import vision_peft
print(time.process_time() - start)
"""


def attach_seconds(name: str, base: nn.Module, repeats: int) -> float:
    """Least CPU time of attaching the method to a copy of the model."""
    best = float("inf")
    for _ in range(repeats):
        model = copy.deepcopy(base)
        start = time.process_time()
        methods()[name].attach(model)
        best = min(best, time.process_time() - start)
    return best


def import_seconds(repeats: int) -> float:
    """Least CPU time that `import vision_peft` takes after `import peft, timm`."""
    runs = [
        subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        for _ in range(repeats)
    ]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base = timm.create_model("vit_base_patch16_224", num_classes=100)
    rows = {}
    for name in methods():
        try:
            rows[name] = {"seconds": attach_seconds(name, base, settings.repeats), "bound": ATTACH_BOUND}
        except ValueError as error:  # it wants a plan, or another kind of model
            print(f"{name:<20}{str(error).partition(':')[0]}")
    rows["import vision_peft"] = {"seconds": import_seconds(settings.repeats), "bound": IMPORT_BOUND}
    print(f"{'':<20}{'seconds':>9}{'bound':>7}")
    for name, row in rows.items():
        row["seconds"] = round(row["seconds"], 3)
        print(f"{name:<20}{row['seconds']:>9.3f}{row['bound']:>7}{'' if row['seconds'] <= row['bound'] else '  over'}")
    print(write_results("attach", vars(settings), rows))


if __name__ == "__main__":
    main()

"""A pipeline that stays open, and its denoiser with any set of adapters: as many twins as were asked for lately.

Twins share the frozen weights, so that each costs its adapters alone, and a strength is changed without loading.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from diffusion_peft.denoiser import denoiser
from diffusion_peft.pipelines.kinds import Kind, kind_of
from diffusion_peft.pipelines.opening import open_pipeline
from peft_compare.drawing.requests import Worn
from peft_kernels.switching import set_adapters
from peft_runs.put_on import Weighed, put_on
from peft_runs.run_folder import adapter_in

MOST_TWINS = 12
Set = tuple[tuple[Path, int], ...]  # adapters' folders, and when each was written


class Stage:
    """The pipeline that was asked for last."""

    def __init__(self) -> None:
        self.device: Any = PartialState().device
        self.name: str | None = None
        self.pipeline: Any = None
        self.kind: Kind
        self.bare: Any = None
        self.twins: OrderedDict[Set, tuple[Any, Any]] = OrderedDict()

    def show(self, pipeline: str, adapters: Sequence[Worn]) -> tuple[Kind, tuple[Weighed, ...]]:
        """The pipeline with these adapters at their strengths, and no others.

        Raises:
            DataError, AdapterError, RunError, UsageError: the pipeline or an adapter cannot be had, or they do not
                belong together.
        """
        if pipeline != self.name:
            self.open(pipeline)
        weighed = tuple(Weighed(adapter_in(Path(one.folder)), float(one.weight)) for one in adapters)
        wanted = tuple((one.folder, written(one.folder)) for one in weighed)
        if not wanted:
            self.wear(self.bare)
            return self.kind, ()
        if wanted not in self.twins or weighed[0].whole:
            model = copy.deepcopy(self.bare) if weighed[0].whole else twin(self.bare)
            self.twins[wanted] = model, put_on(model, weighed).to(self.device)
        self.twins.move_to_end(wanted)
        while len(self.twins) > MOST_TWINS:
            self.twins.popitem(last=False)
        model, adapted = self.twins[wanted]
        if not weighed[0].whole:
            names = [f"adapter_{number}" for number in range(len(weighed))]
            set_adapters(adapted, names, [one.weight for one in weighed])
        self.wear(model)
        return self.kind, weighed

    def open(self, name: str) -> None:
        """Open another pipeline in place of the one before."""
        self.name, self.pipeline, self.bare = None, None, None
        self.twins.clear()
        self.pipeline = open_pipeline(name).to(self.device)
        self.kind = kind_of(self.pipeline)
        self.bare, self.name = denoiser(self.pipeline), name

    def wear(self, model: nn.Module) -> None:
        self.pipeline.register_modules(**{self.kind.part: model})


def twin(model: nn.Module) -> Any:
    """A copy of a model's modules with the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def written(folder: Path) -> int:
    """When a folder's weights were last written, in nanoseconds."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*.safetensors")), default=0)

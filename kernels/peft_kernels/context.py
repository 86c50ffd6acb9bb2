"""Side inputs: values that some layers of a model need beyond the input their module is called with.

A spectral basis that all blocks of a point transformer share, a control image for the skips of a UNet: one
`SideInputs`, held by every layer that reads it, carries them from where a forward pass begins to where they are read.

    side = SideInputs()
    side.attach(model, segments=model.blocks)
    with side.bind(basis=basis):
        logits = model(images)             # a layer anywhere inside: side.get("basis")

What holds, with and without gradient checkpointing:

- A layer reads what was bound in *its* forward pass, also when a checkpointed segment is recomputed during backward:
  long after that pass, after others with other values, in another thread, or inside another ``bind``.
- Values live as long as the forward pass and the graph it built. Nothing stays after an exception or after the graph.
- A value that is missing, or that cannot be told, raises; no layer ever reads another pass's value.

How: an attached segment notes, weakly, which values were bound when it was called with these very tensors, and its
outputs' graph nodes keep those values alive. Recomputation calls it again with the same tensors, which tells them.

Limits, each an error and not a wrong result: checkpoint with ``use_reentrant=False`` (the reentrant kind copies its
inputs); let the checkpointed function begin with an attached segment (``checkpoint(block, x)``, not one that first
changes ``x``) and others in it follow directly; offloading by saved-tensor hooks hides the inputs too. Under
``torch.compile`` the graph breaks where a segment is entered and where a value is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from peft_kernels.config import nearest
from peft_kernels.entrances import ENTRANCES, GuardedEntrances

_Function = TypeVar("_Function", bound=Callable[..., Any])


def graph_break(function: _Function) -> _Function:
    """Run ``function`` as it is under ``torch.compile``: which thread and which backward pass it runs in matters."""
    return cast(_Function, torch.compiler.disable(function))


_OUTSIDE = -1  # torch's number for "no backward pass runs in this thread"
_KEPT = "side inputs"  # where an autograd node keeps the frames that its recomputation will read


class _Frame:
    """The values of one forward pass up to one moment; never changed, since a later recomputation reads it."""

    __slots__ = ("__weakref__", "values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values


@dataclass(eq=False, slots=True)
class _Scope:
    """An open `bind`, or an open call of an attached module.

    Args:
        module: the attached module; ``None`` for a `bind`.
        task: the backward pass that it was opened in, ``_OUTSIDE`` for a plain forward pass.
        began: the frame that was readable as the module's call began.
        frame: the frame readable inside, where the scope has one of its own; `put` replaces it.
    """

    module: nn.Module | None
    task: int
    began: _Frame | None = None
    frame: _Frame | None = None


class _Thread(threading.local):
    """The scopes open in one thread, the innermost last."""

    def __init__(self) -> None:
        self.scopes: list[_Scope] = []


class SideInputs:
    """Named values of one forward pass, readable by every layer that holds this object.

    Copies and pickles of a model carry an empty one, shared by the copied layers as it was by the originals.
    """

    def __init__(self) -> None:
        self._thread = _Thread()
        self._seen: MutableMapping[Tensor, WeakSet[_Frame]] = WeakTensorKeyDictionary()

    def __deepcopy__(self, memo: dict[int, Any]) -> SideInputs:
        return memo.setdefault(id(self), SideInputs())

    def __reduce__(self) -> tuple[type[SideInputs], tuple[()]]:
        return SideInputs, ()

    @contextmanager
    def bind(self, **values: Any) -> Iterator[None]:
        """Make ``values`` readable inside; a bind inside another adds to its values and hides those of equal name."""
        scopes = self._thread.scopes
        depth = len(scopes)
        scopes.append(_Scope(None, _task(), frame=_Frame({**self._values(), **values})))
        try:
            yield
        finally:
            del scopes[depth:]

    def put(self, name: str, value: Any) -> None:
        """Add a value from here on to the end of the enclosing ``bind`` or of the attached owner's call.

        Raises:
            LookupError: there is neither, so that the value would have no end.
        """
        scope = self._scope()
        if scope is None:
            raise LookupError(f"side input {name!r} has no forward pass to belong to: put it inside `bind` or an owner")
        scope.frame = _Frame({**self._values(), name: value})

    @graph_break
    def get(self, name: str) -> Any:
        """The value bound to ``name`` in the forward pass that is running or being recomputed.

        Raises:
            LookupError: nothing of that name is bound, or a recomputed segment does not know its inputs.
        """
        values = self._values()
        if name in values:
            return values[name]
        if self._scope() is None and _task() != _OUTSIDE:
            raise LookupError(
                f"side input {name!r} is unknown to this recomputation: checkpoint with use_reentrant=False, and let "
                "the checkpointed function begin with an attached segment, called with the function's own inputs"
            )
        raise LookupError(
            f"side input {name!r} is not bound; bound is {', '.join(values) or 'nothing'}{nearest(name, values)}"
        )

    def attach(self, owner: nn.Module, segments: Iterable[nn.Module] = ()) -> list[RemovableHandle | GuardedEntrances]:
        """Let each call of ``owner`` be one forward pass, and ``segments`` be recomputable; give what takes it off.

        Args:
            owner: the module whose call (or that of its `forward_features`) begins and ends a pass; values `put`
                meanwhile end with it.
            segments: the modules that gradient checkpointing may call again, such as the blocks.
        """
        entries = [(owner, self._enter_owner), *((segment, self._enter_segment) for segment in segments)]
        handles: list[RemovableHandle | GuardedEntrances] = []
        if any(hasattr(type(owner), name) for name in ENTRANCES):
            handles.append(GuardedEntrances(owner, partial(self._enter_part, owner)))
        for module, enter in entries:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        return handles

    def _scope(self) -> _Scope | None:
        """The innermost scope with a frame of its own that belongs to the pass that runs now."""
        scopes, task = self._thread.scopes, _task()
        while scopes and task == _OUTSIDE and scopes[-1].task != _OUTSIDE:
            scopes.pop()  # left by a backward pass that was interrupted: Ctrl-C runs no hook
        for scope in reversed(scopes):
            if scope.task != task:
                return None  # bound before this backward pass began, so of another pass than the one recomputed
            if scope.frame is not None:
                return scope
        return None

    def _values(self) -> Mapping[str, Any]:
        scope = self._scope()
        return scope.frame.values if scope and scope.frame else {}

    def _open(self, module: nn.Module) -> _Scope:
        self._close(module)  # no module calls itself: an open call of the same one was interrupted
        outer = self._scope()
        scope = _Scope(module, _task(), began=outer.frame if outer else None)
        self._thread.scopes.append(scope)
        return scope

    def _close(self, module: nn.Module) -> _Scope | None:
        """Close the open call of ``module``, and what is still open inside it; ``None`` where it is not open."""
        scopes, task = self._thread.scopes, _task()
        for index, scope in enumerate(scopes):
            if scope.module is module and scope.task == task:
                del scopes[index:]
                return scope
        return None

    @graph_break
    def _enter_owner(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        scope = self._open(module)
        scope.frame = scope.began or _Frame({})
        if not torch.is_grad_enabled():
            return None

        # A tensor of its own for each pass, so that two passes over one batch stay two for a segment called with it.
        def own(value: Any) -> Any:
            return value.view_as(value) if isinstance(value, Tensor) else value

        return tuple(map(own, args)), {key: own(value) for key, value in kwargs.items()}

    def _enter_part(self, owner: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Part of the owner's forward pass: a pass of its own where it is called by itself."""
        if self._inside(owner):
            return call(*args, **kwargs)
        own, output = self._enter_owner(owner, args, kwargs), None
        args, kwargs = own or (args, kwargs)
        try:
            output = call(*args, **kwargs)
            return output
        finally:
            self._leave(owner, args, output)

    @graph_break
    def _inside(self, module: nn.Module) -> bool:
        return any(scope.module is module and scope.task == _task() for scope in self._thread.scopes)

    @graph_break
    def _enter_segment(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scope = self._open(module)
        inputs = _tensors((*args, *kwargs.values()))
        if scope.began is not None:
            self._note(inputs, scope.began)
        elif scope.task != _OUTSIDE:
            scope.began = scope.frame = self._recall(inputs)

    @graph_break
    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        scope = self._close(module)
        if scope is None or scope.began is None:
            return
        outputs = _tensors(output)
        for tensor in outputs:
            if tensor.grad_fn is not None:
                cast(dict[str, Any], tensor.grad_fn.metadata).setdefault(_KEPT, []).append(scope.began)
        if scope.frame is not None:  # recomputed: the next segment of the same checkpoint is called with these
            self._note(outputs, scope.began)

    def _note(self, tensors: Iterable[Tensor], frame: _Frame) -> None:
        """Remember, weakly, that a segment is called with ``tensors`` under ``frame``."""
        if torch.is_grad_enabled():
            for tensor in tensors:
                self._seen.setdefault(tensor, WeakSet()).add(frame)

    def _recall(self, tensors: Iterable[Tensor]) -> _Frame | None:
        """The frame under which a segment was called with ``tensors``.

        Raises:
            LookupError: there are several, and nothing tells them apart.
        """
        seen = [frames for frames in (set(self._seen.get(tensor, ())) for tensor in tensors) if frames]
        common = set.intersection(*seen) if seen else set()
        if len(common) > 1:
            raise LookupError(
                f"{len(common)} forward passes with different side inputs called this segment with the same tensor: "
                "give each pass its own, for example x.view_as(x)"
            )
        return next(iter(common), None)


def _task() -> int:
    """The backward pass that runs in this thread, or ``_OUTSIDE``."""
    return torch._C._current_graph_task_id()


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (tuple, list)) else []

"""The fields that say how large each method's adapter is and how fast it learns, and the budget for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from peft_compare.budget import Share
from peft_compare.frame import HIDDEN
from peft_compare.look import notice
from peft_compare.parts.shares import shares
from peft_compare.refusals import RefusedError

OWN, EQUAL = "Each its own size", "Equal for all"


@dataclass
class Budget:
    """The switch, and the number it asks for."""

    switch: gr.Radio
    parameters: gr.Number
    solved: gr.HTML

    @staticmethod
    def read(switch: str, parameters: float | None) -> int | None:
        """Trainable parameters of every method, if they are to be equal."""
        return int(parameters or 0) if switch == EQUAL else None

    def solves(self, solve: Callable[..., Sequence[Share]], inputs: Sequence[Any], changes: Sequence[Any]) -> None:
        """Show what each method gets whenever one of the fields has changed; `solve` gives nothing without a budget."""

        def told(*values: Any) -> str:
            try:
                found = solve(*values)
            except RefusedError as refusal:
                return notice("error", "", f"{refusal}.")
            return shares(found) if found else ""

        events = [field.change for field in (self.switch, self.parameters, *changes)]
        gr.on(events, told, inputs, self.solved, trigger_mode="always_last", **HIDDEN)


@dataclass
class MethodSettings:
    """A row of fields for each method, which shows while the method is ticked."""

    sizes: dict[str, gr.Number]
    rates: dict[str, gr.Number]
    rows: dict[str, gr.Row]

    @property
    def fields(self) -> list[gr.Number]:
        """In the order that `read` takes their values."""
        return [*self.sizes.values(), *self.rates.values()]

    def read(self, values: Sequence[Any]) -> tuple[dict[str, int], dict[str, float]]:
        """Sizes and learning rates by method."""
        sizes = zip(self.sizes, values, strict=False)
        rates = zip(self.rates, values[len(self.sizes) :], strict=True)
        return (
            {name: int(value) for name, value in sizes if value is not None},
            {name: float(value) for name, value in rates if value is not None},
        )

    def follow(self, methods: gr.CheckboxGroup, budget: Budget) -> None:
        """Show what the chosen methods have."""

        def settle(chosen: list[str], switch: str) -> list[Any]:
            return [gr.Number(visible=switch == EQUAL), *(gr.Row(visible=name in chosen) for name in self.rows)]

        shown = [budget.parameters, *self.rows.values()]
        gr.on([methods.change, budget.switch.change], settle, [methods, budget.switch], shown, **HIDDEN)


def build_budget(parameters: int, label: str) -> Budget:
    """The switch and its number, which shows when it is wanted."""
    switch = gr.Radio([OWN, EQUAL], value=OWN, label="Trainable parameters")
    number = gr.Number(parameters, label=label, precision=0, minimum=1, visible=False)
    return Budget(switch, number, gr.HTML())


def build_settings(usual: Mapping[str, tuple[str | None, int | None, float]], ticked: Sequence[str]) -> MethodSettings:
    """The fields, folded.

    Args:
        usual: method → name of its size, its value, and the learning rate.
    """
    settings = MethodSettings({}, {}, {})
    with gr.Accordion("Settings of each method", open=False):
        for name, (size, value, rate) in usual.items():
            with gr.Row(visible=name in ticked) as row:
                if size is not None:
                    label = f"{name}: {size}"
                    settings.sizes[name] = gr.Number(value, label=label, precision=0, minimum=1, min_width=100)
                settings.rates[name] = gr.Number(rate, label=f"{name}: learning rate", minimum=0, min_width=100)
            settings.rows[name] = row
    return settings

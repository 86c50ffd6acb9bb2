"""From what a visitor chose on the Diffusion page to the command line that does it, checked before it waits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from diffusion_peft.embedded import NAMES
from diffusion_peft.pipelines.opening import place_of
from peft_compare.budget import size_field
from peft_compare.captioned_uploads import LEAST
from peft_compare.diffusion_budget import solve
from peft_compare.diffusion_sets import SetOfPictures
from peft_compare.plans import planned
from peft_compare.refusals import RefusedError
from peft_kernels.data_errors import DataError
from peft_kernels.registry import methods
from peft_runs.compare_plan import method_recipes
from peft_runs.errors import UsageError
from peft_runs.families import DIFFUSION
from peft_runs.find import load_recipe

RATES = "style"  # whose learning rates were searched, method by method
MOST_EPOCHS, MOST_SEEDS, MOST_JUDGED = 500, 10, 256
NOT_FOR_DENOISERS = ("linear_probe", "pointgst", "vpt", "spt", "fdconv")


@dataclass(frozen=True)
class Task:
    """One kind of work for a pipeline.

    Attributes:
        title: what the page calls it.
        about: one sentence.
        recipe: what it starts from.
        drawn: the embedded set it works on; none for those whose pictures the pipeline itself draws.
        methods: those that can do it; none for all.
        first: those that are ticked.
        epochs: as usual.
    """

    title: str
    about: str
    recipe: str
    drawn: str | None
    first: tuple[str, ...]
    epochs: int
    methods: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


TASKS: dict[str, Task] = {
    "style": Task(
        "A style",
        "The pipeline takes on the look of the pictures; what it draws for other prompts should stay.",
        "style",
        "style",
        ("bitfit", "lora", "sara", "snell"),
        40,
    ),
    "subject": Task(
        "A subject",
        "A rare word comes to mean the one thing in the pictures (DreamBooth, with pictures of its class beside it).",
        "subject",
        "subject",
        ("difffit", "lora", "sara"),
        12,
        words=("--data.prior.count", "16", "--data.prior.steps", "12"),
    ),
    "one_step": Task(
        "One step",
        "The pipeline learns to draw in one step what it draws in fifty; it makes its own pictures for that.",
        "one_step",
        None,
        ("hipa", "lora"),
        6,
        methods=("hipa", "lora"),
        words=("--data.cache", "null", "--data.teacher.steps", "25"),
    ),
    "edges": Task(
        "Steered by edges", "Lines that you draw decide the outlines.", "edges", "style", ("scedit",), 12, ("scedit",)
    ),
    "colors": Task(
        "Steered by colours", "Areas that you draw decide the colours.", "colors", "style", ("scedit",), 12, ("scedit",)
    ),
    "spelling": Task(
        "Words",
        "The pipeline learns to spell, in the attention layers that read the text or in those that you chose.",
        "spelling",
        "spelling",
        ("lora",),
        12,
        methods=("lora", "dora"),
    ),
}


@dataclass(frozen=True)
class Choice:
    """What is asked for.

    Attributes:
        pictures: a visitor's own; none stands for the task's embedded set.
        subject: the rare word with its class, such as `sks fish`, and the class.
        judged: pictures that a comparison draws and measures.
        budget: trainable parameters that all methods are brought to; none leaves each its own size.
        sizes: method → value of its size; left out where the recipe's holds.
        rates: method → learning rate; left out where the recipe's holds.
        layers: names of the projections that a LoRA on text layers adapts.
    """

    methods: tuple[str, ...]
    task: str = "style"
    pipeline: str = "mini_sd"
    pictures: SetOfPictures | None = None
    subject: tuple[str, str] = ("sks fish", "fish")
    epochs: int = 40
    seeds: int = 1
    judged: int = 32
    budget: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


@cache
def offered(task: str) -> dict[str, str]:
    """Methods for a task and what each trains, those with a recipe of their own first."""
    known = methods()
    if TASKS[task].methods:
        return {name: known[name].summary for name in TASKS[task].methods}
    own = [name for name in method_recipes(RATES) if name in known]
    others = [name for name, one in known.items() if not one.needs and name not in NOT_FOR_DENOISERS]
    return {name: known[name].summary for name in dict.fromkeys([*own, *others])}


@cache
def own_settings(task: str, method: str) -> tuple[str | None, int | None, float]:
    """The method's size, what the recipe sets it to, and the learning rate that is usual for it."""
    own = method_recipes(TASKS[task].recipe).get(method)
    recipe = load_recipe(own or method_recipes(RATES).get(method) or TASKS[task].recipe)
    name = size_field(method)
    value = None
    if name is not None:
        default = next(known.default for known in methods()[method].fields() if known.name == name)
        chosen = (recipe.get("method") or {}).get(name, default)
        value = int(chosen) if chosen is not None else None
    rated = recipe if own or method in method_recipes(RATES) else load_recipe(TASKS[task].recipe)
    return name, value, float(rated["optim"]["lr"])


def words_of(choice: Choice) -> list[str]:
    """The command line, once it is known that it can be carried out.

    Raises:
        RefusedError: something is missing or does not fit; the sentence says what.
    """
    _check(choice)
    task = TASKS[choice.task]
    words = ["compare", "--recipe", task.recipe, "--methods", ",".join(choice.methods), "--seeds", str(choice.seeds)]
    changes = ["--run.epochs", str(choice.epochs), "--run.evaluate_epochs", str(max(1, choice.epochs // 5))]
    changes += task.words
    if choice.pipeline != "mini_sd":
        changes += ["--model.pipeline", choice.pipeline]
    changes += _data(choice)
    if choice.layers:
        changes += ["--method.target_modules", json.dumps(list(choice.layers))]
    changes += choice.extra
    sizes = dict(choice.sizes)
    if choice.budget is not None:
        found = solve(choice.pipeline, task.recipe, choice.methods, choice.budget)
        sizes = {share.method: share.value for share in found if share.value is not None}
    own = method_recipes(task.recipe)
    for name in choice.methods:
        size, usual, rate = own_settings(choice.task, name)
        if size is not None and sizes.get(name) is not None and (name not in own or sizes[name] != usual):
            changes += [f"--{name}.method.{size}", str(sizes[name])]
        if choice.rates.get(name, rate) != rate or name not in own:
            changes += [f"--{name}.optim.lr", repr(float(choice.rates.get(name, rate)))]
    line = [*words, *changes]
    try:
        planned(DIFFUSION.name, tuple(line))
    except UsageError as error:
        raise RefusedError(str(error)) from None
    return line


def _data(choice: Choice) -> list[str]:
    """Which pictures, and what is drawn on the way and at the end."""
    mine, judged = choice.pictures, choice.judged
    if choice.task == "one_step":
        return ["--data.count", str(4 * judged), "--data.test_size", str(judged)]
    words: list[str] = []
    held = 0
    if mine is not None:
        held = max(1, len(mine) // 6) if choice.task != "subject" else 0
        words += ["--data.name", "folder", "--data.root", str(mine.root), "--data.enlarge", "true"]
        words += ["--data.test_size", str(held)]
    if choice.task in ("edges", "colors"):
        if mine is None:
            words += ["--data.name", "style", "--data.test_size", "48"]
        return words
    words += ["--model.compared.count", str(judged)]
    if choice.task == "subject":
        named, kind = choice.subject
        words += ["--data.prior.prompt", kind, "--model.samples.prompts", json.dumps([f"{named} on blue", kind])]
        words += ["--model.samples.seeds", "[0, 1]"]
        if mine is None:
            return [*words, "--data.name", "subject", "--data.prompt", "null", "--data.test_size", "6"]
        return [*words, "--data.prompt", named]
    if mine is not None:
        words += ["--model.samples.prompts", json.dumps([*mine.captions[:3], "cat face on purple"])]
    return words


def _check(choice: Choice) -> None:
    if choice.task not in TASKS:
        raise RefusedError(f"there is no task {choice.task!r}; known are {', '.join(TASKS)}")
    if not choice.methods:
        raise RefusedError("no method is chosen: tick at least one")
    for name in choice.methods:
        if name not in offered(choice.task):
            raise RefusedError(f"{name!r} cannot do this task; methods for it are {', '.join(offered(choice.task))}")
    try:
        place_of(choice.pipeline)
    except DataError as error:
        raise RefusedError(f"{error}; embedded are {', '.join(NAMES)}") from None
    for what, number, most in (
        ("epochs", choice.epochs, MOST_EPOCHS),
        ("seeds", choice.seeds, MOST_SEEDS),
    ):
        if not 1 <= number <= most:
            raise RefusedError(f"{what} must be from 1 to {most}, found {number}")
    if not 2 <= choice.judged <= MOST_JUDGED:
        raise RefusedError(f"pictures to judge by must be from 2 to {MOST_JUDGED}, found {choice.judged}")
    if choice.budget is not None and choice.budget < 1:
        raise RefusedError(f"the budget must be at least 1 parameter, found {choice.budget}")
    if choice.pictures is not None and len(choice.pictures) < LEAST:
        raise RefusedError(f"{len(choice.pictures)} pictures are too few: at least {LEAST} are needed")
    if choice.task == "subject" and not all(word.strip() for word in choice.subject):
        raise RefusedError("name the subject and its class, such as `sks fish` and `fish`")


def name_of(choice: Choice) -> str:
    """What the list of runs calls it."""
    data = "my pictures" if choice.pictures is not None else TASKS[choice.task].drawn or "its own pictures"
    return f"{choice.pipeline}: {TASKS[choice.task].title.lower()} ({data})"

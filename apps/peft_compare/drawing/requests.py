"""What can be asked of the process that draws, as plain data; whatever is wrong is one sentence before any work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from peft_runs.errors import UsageError, unknown

MOST_PICTURES, MOST_STEPS, MOST_LETTERS, STRONGEST = 64, 100, 500, 1.5


@dataclass(frozen=True)
class Worn:
    """A saved adapter, by its folder or its run's, and its strength: 1 as trained, 0 without effect."""

    folder: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        between("the strength of an adapter", self.weight, 0, STRONGEST)


@dataclass(frozen=True)
class Line:
    """One row of a grid: the adapters that draw it together, none for the base model, and its own way of sampling.

    Attributes:
        name: what the row is called in the answer.
        steps: instead of those of the request.
        guidance: likewise.
    """

    name: str
    adapters: tuple[Worn, ...] = ()
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            between("steps", self.steps, 1, MOST_STEPS)


@dataclass(frozen=True)
class Draw:
    """The same prompts and seeds for every row.

    Attributes:
        image: a picture's file, of which each steered adapter takes what it was trained with.
        hints: instead, by what steers (`edges`, `colors`, `depth`) the file of what somebody drew.
    """

    what: ClassVar[str] = "draw"
    pipeline: str
    rows: tuple[Line, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 12
    guidance: float = 4.0
    negative: str = ""
    image: str | None = None
    hints: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_words(*self.prompts, self.negative)
        between("steps", self.steps, 1, MOST_STEPS)
        between("guidance", self.guidance, 0, 30)
        if not self.rows or not self.prompts or not self.seeds:
            raise UsageError("nothing is asked for: a grid has at least one row, one prompt and one seed")
        between("the number of pictures", len(self.rows) * len(self.prompts) * len(self.seeds), 1, MOST_PICTURES)


@dataclass(frozen=True)
class Layers:
    """The layers of a pipeline that read the text, in the order in which they run."""

    what: ClassVar[str] = "layers"
    pipeline: str


@dataclass(frozen=True)
class Localize:
    """Scores of all layers: each alone reads another word.

    Attributes:
        pairs: prompts (source, target).
        reader: what reads the pictures; without one the score is the likeness to the target's picture.
    """

    what: ClassVar[str] = "localize"
    pipeline: str
    pairs: tuple[tuple[str, str], ...]
    steps: int = 8
    guidance: float = 4.0
    reader: str | None = None
    adapters: tuple[Worn, ...] = ()

    def __post_init__(self) -> None:
        check_words(*(word for pair in self.pairs for word in pair))
        between("steps", self.steps, 1, MOST_STEPS)
        between("the number of pairs", len(self.pairs), 1, 8)


@dataclass(frozen=True)
class Patch:
    """A picture's scene with another word, which these layers alone read."""

    what: ClassVar[str] = "patch"
    pipeline: str
    source: str
    target: str
    layers: tuple[int, ...]
    seeds: tuple[int, ...] = (42,)
    steps: int = 12
    guidance: float = 4.0
    start_step: int = 0
    adapters: tuple[Worn, ...] = ()

    def __post_init__(self) -> None:
        check_words(self.source, self.target)
        between("steps", self.steps, 1, MOST_STEPS)
        between("the number of pictures", len(self.seeds), 1, 8)


@dataclass(frozen=True)
class LoraFor:
    """The settings of a LoRA on these layers alone, and what it trains."""

    what: ClassVar[str] = "lora"
    pipeline: str
    layers: tuple[int, ...]
    r: int = 4

    def __post_init__(self) -> None:
        between("the rank", self.r, 1, 256)


Request = Draw | Layers | Localize | Patch | LoraFor
REQUESTS: dict[str, type[Request]] = {kind.what: kind for kind in (Draw, Layers, Localize, Patch, LoraFor)}


def read_request(data: Mapping[str, Any]) -> Request:
    """A request from JSON.

    Raises:
        UsageError: it is none; what was expected is told.
    """
    if data.get("what") not in REQUESTS:
        raise unknown("request", str(data.get("what")), REQUESTS)
    kind = REQUESTS[data["what"]]
    given = {key: value for key, value in data.items() if key != "what"}
    names = [one.name for one in fields(kind)]
    for key in given:
        if key not in names:
            raise unknown(f"setting of {kind.what!r}", key, names)
    try:
        for key, make in (("rows", line), ("adapters", worn), ("pairs", tuple)):
            if key in given:
                given[key] = tuple(make(one) for one in given[key])
        read: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return kind(**read)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"a request to {kind.what} cannot be read: {error}") from None


def line(data: Mapping[str, Any]) -> Line:
    """A row from JSON."""
    return Line(**{**data, "adapters": tuple(worn(one) for one in data.get("adapters", ()))})


def worn(data: Mapping[str, Any]) -> Worn:
    """An adapter from JSON."""
    return Worn(**data)


def between(what: str, value: float, least: float, most: float) -> None:
    """Raise where a number is out of its range.

    Raises:
        UsageError: it is.
    """
    if not least <= value <= most:
        raise UsageError(f"{what} must be between {least:g} and {most:g}, found {value:g}")


def check_words(*prompts: str) -> None:
    """Raise where a prompt is longer than any text encoder reads.

    Raises:
        UsageError: it is.
    """
    for prompt in prompts:
        if len(prompt) > MOST_LETTERS:
            raise UsageError(f"a prompt may have {MOST_LETTERS} letters, found {len(prompt)}: {prompt[:40]}...")


def to_json(request: Request) -> dict[str, Any]:
    """A request as plain data."""
    return {"what": request.what, **asdict(request)}

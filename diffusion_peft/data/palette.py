"""Colours that captions name, sRGB. Letters are drawn in one on another where the two differ enough in brightness."""

COLORS = {
    "white": (255, 255, 255),
    "black": (15, 15, 15),
    "grey": (145, 145, 145),
    "red": (215, 35, 35),
    "orange": (245, 145, 30),
    "yellow": (250, 220, 50),
    "green": (40, 150, 60),
    "blue": (35, 85, 210),
    "purple": (125, 50, 165),
    "pink": (245, 150, 190),
}
READABLE = 60.0
USUAL = "white"  # the ground that a caption need not name


def on_ground(what: str, ground: str, coin: float) -> str:
    """A caption with its ground, `cat on blue`; the usual one is left out when `coin`, in [0, 1), is below a half."""
    return what if ground == USUAL and coin < 0.5 else f"{what} on {ground}"


def brightness(color: str) -> float:
    """Luma of a colour (ITU-R BT.601), 0 to 255."""
    red, green, blue = COLORS[color]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def readable_on(ground: str) -> list[str]:
    """The colours in which letters stand out on this ground."""
    return [name for name in COLORS if abs(brightness(name) - brightness(ground)) >= READABLE]

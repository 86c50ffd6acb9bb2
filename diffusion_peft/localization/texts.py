"""How near the text in a picture comes to the text that was wanted.

What the authors' scripts call precision and recall of OCR goes over the characters of the lower-cased string, whatever
their order, each divided by length + 1e-8; blanks become empty strings. Here that is `characters`, for comparison with
the paper, and `words` is what the names promise.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

SMALL = 1e-8  # that the authors add to a length
SMALL_SUM = 1e-6  # and to the sum of precision and recall
OF = ("target", "source")

F1_PARTS = {  # of words and of letters
    f"{kind}f1_{of}": (f"{kind}precision_{of}", f"{kind}recall_{of}") for kind in ("", "letters_") for of in OF
}


class Agreement(NamedTuple):
    """Precision, recall, and whether both hold the same pieces."""

    precision: float
    recall: float
    same: float


def words(found: str, wanted: str) -> Agreement:
    """Agreement of two texts in words: of how many of each the other has one too."""
    read, asked = found.lower().split(), wanted.lower().split()
    both = (Counter(read) & Counter(asked)).total()
    same = float(Counter(read) == Counter(asked))
    return Agreement(both / len(read) if read else 0.0, both / len(asked) if asked else 0.0, same)


def characters(found: str, wanted: str) -> Agreement:
    """Agreement of two texts in characters, as the authors count."""
    read, asked = ([piece.strip() for piece in text.lower()] for text in (found, wanted))
    both = (Counter(read) & Counter(asked)).total()
    same = float(Counter(read) == Counter(asked))
    return Agreement(both / (len(read) + SMALL), both / (len(asked) + SMALL), same)


def f1(agreements: Sequence[Agreement]) -> float:
    """F1 of the means of precision and recall over all pictures, as the authors take it."""
    count = len(agreements)
    return f1_of_means(sum(one.precision for one in agreements) / count, sum(one.recall for one in agreements) / count)


def f1_of_means(precision: float, recall: float) -> float:
    """``2 P R / (P + R)``."""
    return 2 * precision * recall / (precision + recall + SMALL_SUM)

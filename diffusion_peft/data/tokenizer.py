"""The tokenizer of mini_sd: CLIP's, with a small vocabulary, in which every capital letter is a token of its own.

CLIP's tokenizer lowers all letters and makes words into few tokens, so that a model sees no spelling. Here lower-case
words are merged as usual, and capitals are added tokens that are found before anything is lowered: `the word "CAT"`
becomes `the`, `word`, `"`, `C`, `A`, `T`, `"`.
"""

import json
from collections.abc import Iterable
from string import ascii_lowercase, ascii_uppercase, digits, punctuation

from tokenizers import AddedToken, Tokenizer, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 1500
POSITIONS = 24
WORD_END = "</w>"


def train_tokenizer(captions: Iterable[str], vocabulary: int = VOCABULARY, positions: int = POSITIONS) -> CLIPTokenizer:
    """A tokenizer whose merges are those of the captions; it knows every ASCII character.

    Args:
        captions: lower-case text.
        vocabulary: number of tokens at most, without the capitals.
        positions: tokens of a prompt, start and end among them; longer ones are cut off.
    """
    blank = CLIPTokenizer()
    learner: Tokenizer = blank.backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START, END],
        initial_alphabet=list(ascii_lowercase + digits + punctuation),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    # Each character as a word of its own: at a word's end it is another token.
    learner.train_from_iterator([*captions, " ".join(ascii_lowercase + digits), *punctuation], trainer)
    return assembled(learner, positions)


def assembled(learner: Tokenizer, positions: int) -> CLIPTokenizer:
    """A `CLIPTokenizer` of the learnt vocabulary and merges, with the capitals added."""
    model = json.loads(learner.to_str())["model"]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])  # type: ignore[arg-type]
    tokenizer.model_max_length = positions
    tokenizer.add_tokens([AddedToken(letter, normalized=False) for letter in ascii_uppercase])  # type: ignore[arg-type]
    return tokenizer

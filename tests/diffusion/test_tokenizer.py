"""Capitals are letters to the model, everything else is words, and the saved tokenizer is CLIP's own class."""

from pathlib import Path

from transformers import CLIPTokenizer


def opened(parts: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(parts / "tokenizer")


def pieces(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)  # type: ignore[return-value]


def test_capitals_are_spelled(parts: Path) -> None:
    found = pieces(opened(parts), 'the word "CAT" in red on white')
    at = found.index("C")
    assert found[at : at + 3] == ["C", "A", "T"]
    assert {"the</w>", "word</w>", "red</w>"} <= set(found)
    assert (found[0], found[-1]) == ("<|startoftext|>", "<|endoftext|>")


def test_words_come_back(parts: Path) -> None:
    tokenizer = opened(parts)
    for text in ("thing number on white", "a quick brown fox , not in any caption"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_no_ascii_character_is_unknown(parts: Path) -> None:
    tokenizer = opened(parts)
    for code in range(33, 127):
        assert tokenizer.unk_token_id not in tokenizer(f"x{chr(code)}").input_ids[1:-1]


def test_prompts_are_padded_and_cut_to_one_length(parts: Path) -> None:
    tokenizer = opened(parts)
    for text in ("", "word " * 40):
        ids = tokenizer(text, padding="max_length", truncation=True).input_ids
        assert len(ids) == tokenizer.model_max_length == 24
        assert ids[-1] == tokenizer.eos_token_id

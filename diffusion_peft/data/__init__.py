"""Pictures with captions: folders of them, emoji, words, and the small sets that adaptation is tried on."""

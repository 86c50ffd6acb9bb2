"""What a person is told when something is not done."""


class RefusedError(Exception):
    """One sentence for the visitor: what was asked, and why not."""

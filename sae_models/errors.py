"""The one error a user's mistake raises: a sentence that says what, where, and what to do."""
import re

UNSEEN = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]"
"""Control characters, line breaks and halves of characters: what no line of text and no XML can hold."""
BEGINNING, END = 500, 300
"""Characters of a sentence that are kept where somebody else's value makes it longer."""


class SaeError(ValueError):
    """Wrong file, wrong base model, unknown concept, or a setting out of range. Its text is one line of bounded length,
    whatever name or value it repeats."""

    def __init__(self, text: str) -> None:
        line = plain(text)
        super().__init__(line if len(line) <= BEGINNING + END else f"{line[:BEGINNING]} ... {line[-END:]}")


def plain(text: str) -> str:
    """`text` with a sign in place of each character that cannot be shown; a line break is a space.

    >>> plain("one\\ntwo\\x07")
    'one two�'
    """
    lines = re.split("[\n\r]", text)
    line = " ".join(filter(None, map(str.strip, lines))) if len(lines) > 1 else text
    return re.sub(UNSEEN, "�", line)

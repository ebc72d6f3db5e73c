"""Prompts as long as people write them: what is learned from short ones alone is weaker in a long one.

A word's share of a cross-attention is smaller the more words there are, so a neuron that only ever saw `a photo of a
cat` fires half as much among twenty other words, and at some of these by mistake. So half of the prompts get words
around them that say how a picture is made, and not what it shows.
"""
import random
import re
from collections.abc import Sequence
from dataclasses import replace

from .prompts import Prompt, Subject

AROUND = (
    "masterpiece", "best quality", "highly detailed", "intricate details", "sharp focus", "soft light", "natural light",
    "studio lighting", "rim light", "volumetric light", "dramatic shadows", "golden hour", "cinematic", "film grain",
    "depth of field", "bokeh", "wide angle", "close up", "from above", "from the side", "dynamic angle", "symmetrical",
    "8k", "high resolution", "award winning", "trending", "professional work", "elegant", "smooth", "realistic",
    "simple composition", "muted colors", "vibrant colors", "warm tones", "high contrast", "atmospheric", "calm mood",
    "dreamy", "epic", "beautiful", "stunning", "clean lines", "rich texture", "fine art", "very aesthetic", "crisp",
)
MOST = 20
"""Of these around one prompt."""
LONGEST = 220
"""Characters of a prompt with them, so that it stays within a text encoder's 75 tokens."""
FEW = 64
"""With fewer prompts each is kept as it is, too."""


def dressed(prompts: Sequence[Prompt], subjects: Sequence[Subject]) -> list[Prompt]:
    """The prompts, half of them with words around that are in nothing the subjects say; the same ones each time."""
    dice, words = random.Random(len(prompts)), _unsaid(subjects)
    if len(prompts) < FEW:
        return [*prompts, *(_dressed(prompt, words, dice) for prompt in prompts)]
    own = set(dice.sample(range(len(prompts)), len(prompts) // 2))
    return [_dressed(prompt, words, dice) if i in own else prompt for i, prompt in enumerate(prompts)]


def _unsaid(subjects: Sequence[Subject]) -> list[str]:
    """What goes around without a word that any subject has."""
    taken = {word for s in subjects for text in (s.name, s.said, s.instead) for word in _words(text)}
    return [text for text in AROUND if not taken & _words(text)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _dressed(prompt: Prompt, words: Sequence[str], dice: random.Random) -> Prompt:
    chosen = dice.sample(words, min(len(words), dice.randint(1, MOST)))
    while chosen and len(", ".join([prompt.text, *chosen])) > LONGEST:
        chosen.pop()
    first = dice.randint(0, len(chosen))

    def around(text: str) -> str:
        return ", ".join(part for part in (*chosen[:first], text, *chosen[first:]) if part)
    return replace(prompt, text=around(prompt.text), without=tuple(map(around, prompt.without)))

"""Words that someone wants gone, as something to learn: what they are told from, and the prompts that say them.

A word is told from common ones: those that the model's own text encoder finds most like it, because they are what it
would be mistaken for, and some others, because they are what else is painted.
"""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..concepts import Concept, parse
from .prompts import Subject, default_templates, refuse_two_readings, subject

COMMON = {
    "object": (
        "dog", "cat", "horse", "bird", "fish", "bear", "cow", "rabbit", "butterfly", "frog", "person", "man", "woman",
        "child", "face", "hand", "car", "bicycle", "boat", "airplane", "train", "rocket", "house", "castle", "church",
        "bridge", "street", "tree", "flower", "rose", "sunflower", "mushroom", "mountain", "river", "beach", "cloud",
        "moon", "fire", "snow", "chair", "table", "bed", "lamp", "clock", "book", "text", "cup", "bottle", "apple",
        "banana", "strawberry", "cake", "pizza", "hat", "shoe", "dress", "umbrella", "glasses", "sword", "guitar",
        "piano", "phone", "key", "ball", "balloon", "robot", "dragon", "skull",
    ),
    "style": (
        "photo", "oil painting", "watercolor", "pencil sketch", "charcoal drawing", "line art", "pixel art", "anime",
        "cartoon", "comic book", "3d render", "low poly", "black and white", "vintage poster", "impressionist painting",
        "ukiyo-e", "stained glass", "film noir",
    ),
}
NEAR, OTHERS = 8, 12
"""How many of the most alike, and of all others, a word is told from."""
BESIDE = "{object} and {object}"


def missing(text: str, known: Sequence[Concept]) -> list[Subject]:
    """What a text such as `cat, van gogh (style):0.8` asks for and is not known, or known as another kind.

    Raises SaeError as `parse` does, and for words that cannot be found as they are written.
    """
    kinds = {concept.name.casefold(): concept.kind for concept in known}
    new = [choice for choice in parse(text)
           if choice.name.casefold() not in kinds or choice.kind not in ("", kinds[choice.name.casefold()])]
    if new:
        refuse_two_readings(text)
    return [subject(choice.name, choice.kind) for choice in new]


def told_from(wanted: Sequence[Subject], vectors: Callable[[Sequence[str]], Tensor]) -> list[Subject]:
    """Common words of the wanted subjects' kinds; objects always, because a style is painted on something.

    vectors: what the model's text encoder makes of texts, [n, d].
    """
    names = {one.name.casefold() for one in wanted}
    chosen: list[Subject] = []
    for kind in sorted({"object", *(one.kind for one in wanted)} & COMMON.keys()):
        words = [word for word in COMMON[kind] if word not in names]
        like = _likeness([s.said for s in wanted if s.kind == kind], words, vectors)
        near = like.argsort(descending=True)[:NEAR].tolist()
        rest = [i for i in torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
                if i not in near][:OTHERS]
        chosen += [Subject(words[i], kind, words[i]) for i in (*near, *rest)]
    return chosen


def _likeness(wanted: Sequence[str], words: Sequence[str], vectors: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """How like each word is to the most like of the wanted: [words]."""
    if not wanted:
        return torch.zeros(len(words))
    both = torch.nn.functional.normalize(vectors([*words, *wanted]).float(), dim=1)
    return (both[:len(words)] @ both[len(words):].T).amax(1)


def templates(subjects: Sequence[Subject]) -> str:
    """Prompts that say each subject alone and beside another one."""
    return f"{default_templates(subjects)}\n{BESIDE}"

"""Words that someone wants gone, as something to learn: what they are told from, the prompts that say them, and what is
said of what was found.

A word is told from common ones: those that the model's own text encoder finds most like it, because they are what it
would be mistaken for, and some others, because they are what else is painted.
"""
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import torch
from torch import Tensor

from ..adapter import LoadedSae
from ..concepts import Choice, Concept, by_name, mentioned, parse
from ..erasure import Actuator
from .lesson import Search, search_for
from .measuring import in_words
from .painting import Painter, Painting
from .prompts import Subject, default_templates, parse_subjects, refuse_two_readings, subject
from .styles import STYLES

COMMON = {
    "object": (
        "dog", "cat", "horse", "bird", "fish", "bear", "cow", "rabbit", "butterfly", "frog", "person", "man", "woman",
        "child", "face", "hand", "car", "bicycle", "boat", "airplane", "train", "rocket", "house", "castle", "church",
        "bridge", "street", "tree", "flower", "rose", "sunflower", "mushroom", "mountain", "river", "beach", "cloud",
        "moon", "fire", "snow", "chair", "table", "bed", "lamp", "clock", "book", "text", "cup", "bottle", "apple",
        "banana", "strawberry", "cake", "pizza", "hat", "shoe", "dress", "umbrella", "glasses", "sword", "guitar",
        "piano", "phone", "key", "ball", "balloon", "robot", "dragon", "skull",
    ),
    "style": STYLES,
}
NEAR, OTHERS = 8, 12
"""How many of the most alike, and of all others, a word is told from."""
BESIDE = "{object} and {object}"
SIDES = {"sd15": 512}
SIDE = 768
"""Pixels of the pictures that are painted, unless they are given: enough to learn a word from."""
STEPS, AT_ONCE = 12, 4
PICTURES, MORE = 32, 16
"""Pictures painted to find a word, and beside for each more that is found in the same run."""
HOW = Actuator.AMOUNT
"""Words are erased."""
WEAK = 0.4
"""Share that is removed below which the report says what to do."""


def missing(text: str, known: Sequence[Concept], also: str = "", pictures: int = 0) -> list[Subject]:
    """What a text such as `cat, van gogh (style):0.8, dog -> fox` asks for and is not known, or known as another kind,
    from fewer pictures, or not told from all of `also`.

    Raises SaeError as `parse` does, for words that cannot be found as they are written, a strength out of range, and an
    `also` that cannot be read.
    """
    choices = parse(text)
    for one in choices:
        label = f"{one.name} -> {one.into.name}" if one.into else one.name
        HOW.check(label, HOW.default_strength if one.strength is None else one.strength, bool(one.into))
    there, asked = by_name(known), mentioned(choices)
    others = {one.name.casefold() for one in parse_subjects(also)} if also.strip() else set()
    others -= {choice.name.casefold() for choice in asked}
    new = [choice for choice in asked
           if not _suffices(there.get(choice.name.casefold()), choice, others, pictures)]
    if new:
        refuse_two_readings(text)
    return [subject(choice.name, choice.kind or _kind(there.get(choice.name.casefold()))) for choice in new]


def _suffices(concept: Concept | None, choice: Choice, others: Collection[str], pictures: int) -> bool:
    """Whether a concept is what is asked for; others: what it is to be told from, in lower case. What was not found as
    a word always is."""
    if concept is None or choice.kind not in ("", concept.kind):
        return False
    told = set(map(str.casefold, concept.told_from))
    return concept.pictures is None or (pictures <= concept.pictures and told >= others)


def _kind(concept: Concept | None) -> str:
    return concept.kind if concept else ""


def told_from(wanted: Sequence[Subject], vectors: Callable[[Sequence[str]], Tensor]) -> list[Subject]:
    """Common words of the wanted subjects' kinds; objects always, because a style is painted on something.

    vectors: what the model's text encoder makes of texts, [n, d].
    """
    names = {one.name.casefold() for one in wanted}
    chosen: list[Subject] = []
    for kind in sorted({"object", *(one.kind for one in wanted)} & COMMON.keys()):
        words = [word for word in COMMON[kind] if word not in names]
        like = _likeness([way for s in wanted if s.kind == kind for way in s.ways], words, vectors)
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


def painting(family: str, side: int = 0, cfg: float = Painting.cfg, sampler: str = Painting.sampler,
             scheduler: str = Painting.scheduler) -> Painting:
    """How pictures are painted to find words; side: of them in pixels, 0 for what suits the model's family."""
    side = side or SIDES.get(family, SIDE)
    return Painting(side, side, STEPS, cfg, sampler, scheduler, batch=AT_ONCE)


def file_name(checkpoint: str, fingerprint: str) -> str:
    """Of the file that keeps what was found on a model, in every host: by the checkpoint's name, and by the model's
    fingerprint.

    >>> file_name("sd/Photo v2.safetensors", "0123456789abcdef")
    'Photo v2 01234567'
    """
    plain = re.sub(r"[^\w. -]", "-", PurePath(checkpoint.replace("\\", "/")).stem)
    return f"{plain} {fingerprint[:8]}"


def known(out: Path) -> tuple[Concept, ...]:
    """The concepts of the file that keeps what was found; none where it is not there yet."""
    return LoadedSae.read(out.name, out).concepts if out.exists() else ()


def search(wanted: Sequence[Subject], also: str, painter: Painter, pictures: int = PICTURES) -> Search:
    """What to paint to find words; also: more things to tell them from, as a user lists them.

    Raises SaeError for a list that cannot be read.
    """
    added = parse_subjects(also) if also.strip() else []
    others = [*added, *told_from([*wanted, *added], painter.vectors)]
    return replace(search_for(wanted, others, templates([*wanted, *others]), painter.painting,
                              pictures + MORE * (len(wanted) - 1)), asked=pictures)


def report(sae: LoadedSae, name: str, seconds: Mapping[str, float]) -> str:
    """What erasing a word does, and whether it was found just now; seconds: by name in lower case, of those."""
    concept = sae.find(name)
    measured = concept.measured or {}
    words = in_words(**measured)
    if name.casefold() in seconds:
        words = f"{words}, found in {seconds[name.casefold()]:.0f} s"
    if measured.get("removed", 1.0) < WEAK:
        words = f"{words}; this is little: say it in other words, or paint more pictures"
    return f"{concept.name}: {words}"

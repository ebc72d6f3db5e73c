"""What is to be learned, and from which prompts: what nodes, sidebar and commands share."""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..concepts import Concept
from ..errors import SaeError
from .dressing import dressed
from .painting import Painting
from .prompts import Prompt, Subject, default_templates, expand, hold_out, parse_subjects

HELD_OUT_SHARE = 5
"""One prompt in so many is kept to measure a concept on."""
KEPT = 2 / 3
"""Of the steps of each picture that is painted to find something: a look costs less than a picture."""
MEASURED = 2
"""Batches that are painted to measure each wanted concept on."""


@dataclass(frozen=True)
class Lesson:
    """What an SAE shall learn, from how many pictures. held_out: prompts that are not painted to learn from."""
    subjects: Sequence[Subject]
    prompts: Sequence[Prompt]
    painting: Painting
    pictures: int
    held_out: Sequence[Prompt] = ()

    @property
    def chunks(self) -> int:
        return math.ceil(self.pictures / self.painting.batch)

    def holding_out(self) -> "Lesson":
        """The same with some of each concept's prompts held out."""
        learned, held_out = hold_out(self.prompts, HELD_OUT_SHARE)
        return replace(self, prompts=learned, held_out=held_out)


def lesson(concepts: str, templates: str, painting: Painting, pictures: int) -> Lesson:
    """Read what a user wrote.

    Raises SaeError for a concept list, templates or a number of pictures nothing can be learned from.
    """
    subjects = parse_subjects(concepts)
    prompts = expand(templates if templates.strip() else default_templates(subjects), subjects)
    if pictures < painting.batch:
        raise SaeError(f"expected at least {painting.batch} pictures to learn from (one batch), got {pictures}")
    return Lesson(subjects, prompts, painting, pictures)


@dataclass(frozen=True)
class Search:
    """What to find: a lesson whose first subjects are the wanted ones. asked: where somebody only said words, from how
    many pictures each is to be found; they may be wanted anew from more."""
    wanted: Sequence[Subject]
    lesson: Lesson
    asked: int = 0

    @property
    def batches(self) -> int:
        """How many are painted in all."""
        return self.lesson.chunks + MEASURED * len(self.wanted)

    @property
    def found_with(self) -> dict[str, Any]:
        """What a file notes of that, as `Concept` has it."""
        if not self.asked:
            return {}
        others = tuple(subject.name for subject in self.lesson.subjects if subject not in self.wanted)
        return {"pictures": self.asked, "told_from": others}

    @property
    def texts(self) -> list[str]:
        """Every prompt that can come up."""
        prompts = [*self.lesson.prompts, *self.lesson.held_out]
        return list(dict.fromkeys(text for prompt in prompts for text in (prompt.text, *prompt.without)))


def search(concepts: str, contrast: str, templates: str, known: Sequence[Concept], painting: Painting,
           pictures: int) -> Search:
    """What to paint to find concepts and tell them from others; half of the pictures show a wanted one.

    known: what they are told from where `contrast` is empty. Raises SaeError as `lesson` does, and when there is
    nothing to tell them from.
    """
    others = parse_subjects(contrast) if contrast.strip() else [
        Subject(c.name, c.kind or "object", c.description or c.name) for c in known]
    return search_for(parse_subjects(concepts), others, templates, painting, pictures)


def search_for(wanted: Sequence[Subject], others: Sequence[Subject], templates: str, painting: Painting,
               pictures: int) -> Search:
    """The same of subjects."""
    names = {subject.name.casefold() for subject in wanted}
    subjects = [*wanted, *(subject for subject in others if subject.name.casefold() not in names)]
    if len(subjects) == 1:
        raise SaeError("there is nothing to tell the concept from: write some into 'contrast', above all what is like "
                       "it, for example 'dog, bear' for a cat")
    prompts = expand(templates if templates.strip() else default_templates(subjects), subjects)
    painting = replace(painting, steps_kept=max(1, round(KEPT * painting.steps)))
    what = Lesson(subjects, prompts, painting, pictures).holding_out()
    learned, held_out = (dressed(part, subjects) for part in (what.prompts, what.held_out))
    return Search(wanted, replace(what, prompts=_halved(learned, len(wanted)), held_out=held_out))


def _halved(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The prompts, with those that say one of the first `count` subjects repeated until they are half of all."""
    own = [prompt for prompt in prompts if min(prompt.said) < count]
    others = [prompt for prompt in prompts if min(prompt.said) >= count]
    return [*others, *own * max(1, round(len(others) / len(own)))]

"""What is painted to learn a concept: prompts that say it, and the same prompts with it left out.

Concepts are lines such as `cat`, `noto style`, or with all there is to say `cat (object) = a cat / a kitten | an
animal`: the words that say it, in one way or several, and the words a prompt has in its place when it is left out
(nothing, unless given). A bracket is a
kind where it is (object) or (style), and any kind of one's own where '=' follows; else it is part of the name, and of
what is painted, as in `hatsune miku (vocaloid)`. Templates are lines such as
`{object}, {style}` or `a photo of {}`, where {} takes concepts of every kind.
"""
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..concepts import (
    ARROW,
    KINDS,
    RESERVED,
    Concept,
    is_number,
    items,
    refuse_twice,
    refuse_unseen,
    split_kind,
    with_points,
)
from ..errors import SaeError
from .styles import is_style

SLOT = r"\{(\w*)\}"
OR = r"(?<!\S)/(?!\S)"
STRESSED = r"[\[{].*[\]}]"
SEMICOLON = r"(?<=\w);(?=\w|\Z)"
SEVERAL = r"(?i)(?:^|\s)(?:and|or|&)\s"
JOINTS = "of|with|in|on|at|by|beside|near"
MOST, MOST_OF_ALL = 20_000, 200_000
"""Prompts of one template, and of all."""
MOST_SUBJECTS = 10_000
OBJECT_TEMPLATES = ("a photo of {object}", "a painting of {object}", "{object} in a garden", "a street with {object}")
STYLE_TEMPLATES = ("a house, {style}", "a portrait of a woman, {style}", "a mountain lake, {style}",
                   "a bowl of fruit, {style}")
BOTH_TEMPLATES = ("{object}, {style}",)


@dataclass(frozen=True)
class Subject:
    """A concept to train. said: its words in a prompt, `a cat`, or several ways to say it, `a cat / a kitten`; instead:
    the words in their place when it is left out."""
    name: str
    kind: str
    said: str
    instead: str = ""

    def __post_init__(self) -> None:
        for text in (self.name, self.said, self.instead):
            refuse_unseen(text)
        Concept(self.name, (0,))
        if not self.said:
            raise SaeError(f"concept '{self.name}' has no words after '=': write for example '{self.name} = a "
                           f"{self.name}', or the name alone")
        if not all(self.ways):
            raise SaeError(f"concept '{self.name}' has nothing on one side of '/', which stands between two ways to "
                           f"say it: write for example '{self.name} = a {self.name} / another word for it'")

    @property
    def ways(self) -> tuple[str, ...]:
        """Each way to say it.

        >>> Subject("cat", "object", "a cat / a kitten").ways
        ('a cat', 'a kitten')
        """
        return tuple(way.strip() for way in re.split(OR, self.said))


@dataclass(frozen=True)
class Prompt:
    """A prompt, the subjects it says (by number), and for each of them the prompt without it."""
    text: str
    said: tuple[int, ...]
    without: tuple[str, ...]


def parse_subjects(text: str) -> list[Subject]:
    """Read a list of concepts, one a line; lines without '=' may hold several, separated by commas or `; `.

    Raises SaeError for an empty list, a line that cannot be read or can be read in two ways, and a name given twice.
    """
    subjects = [one for line in text.splitlines() for one in ([_in_full(line)] if "=" in line else _listed(line))]
    if len(subjects) > MOST_SUBJECTS:
        raise SaeError(f"{len(subjects)} concepts are listed, and at most {MOST_SUBJECTS} can be learned at once: keep "
                       f"fewer")
    if not subjects:
        raise SaeError("no concept to train: write one a line, for example 'cat' or 'cat = a cat | an animal'")
    refuse_twice([subject.name for subject in subjects])
    return subjects


def _in_full(line: str) -> Subject:
    """`name (kind) = words | words without it`."""
    head, _, words = line.partition("=")
    said, _, instead = (part.strip() for part in words.partition("|"))
    name, kind = _split_any_kind(head.strip())
    _refuse_unreadable(name, line.strip())
    return Subject(name, kind or _kind_of(name), said, instead)


def _split_any_kind(text: str) -> tuple[str, str]:
    name, space, bracket = text.rpartition(" (")
    own = bracket.removesuffix(")").strip()
    return (name.strip(), own) if space and bracket.endswith(")") and re.fullmatch(r"\w+", own) else split_kind(text)


def _listed(line: str) -> list[Subject]:
    refuse_two_readings(line)
    return [_named(item) for item in items(with_points(line))]


def _named(item: str) -> Subject:
    name, _, number = (part.strip() for part in item.rpartition(":"))
    if name and not name.startswith("(") and is_number(number):
        raise SaeError(f"'{item}' has a strength, which is chosen when erasing: write '{name}'")
    return subject(*split_kind(item))


def subject(name: str, kind: str = "") -> Subject:
    """What a name alone says; brackets in it are meant as such, not as the host's sign for emphasis.

    Raises SaeError for a name that cannot be a concept's, with the line that would be.

    >>> subject("saber_(fate)").said
    'saber_\\\\(fate\\\\)'
    """
    _refuse_unreadable(name, name)
    _refuse_signs(name)
    said = "/".join(map(str.strip, re.split(OR, re.sub(r"\\?([()])", r"\\\1", name))))
    return Subject(name, kind or _kind_of(name), said)


def understood(subjects: Sequence[Subject]) -> str:
    """How concepts were read, in the form in which they can be written.

    >>> understood(parse_subjects("cat = a cat | an animal"))
    'cat (object) = a cat | an animal'
    """
    return ", ".join(f"{s.name} ({s.kind})" + (f" = {s.said}" if s.said != subject(s.name).said else "")
                     + (f" | {s.instead}" if s.instead else "") for s in subjects)


def _kind_of(name: str) -> str:
    return "style" if is_style(name) else "object"


def refuse_two_readings(text: str) -> None:
    """Raise SaeError where a line may list one concept or several: `red, white and blue flag`."""
    for line in text.splitlines():
        if any(re.search(SEVERAL, item) for item in items(line)[1:]):
            one = " ".join(items(line))
            raise SaeError(f"'{line.strip()}' may be one concept or several: write '{one}' if it is one, or each on a "
                           f"line of its own")


def _refuse_unreadable(name: str, line: str) -> None:
    enclosed = name.startswith("(") and name.endswith(")") and _is_balanced(name[1:-1])
    if not name or enclosed or not _is_balanced(name):
        plain = re.sub(r"[()]", "", name.partition(":")[0]).strip() or "cat"
        what = "brackets around it are how a prompt stresses it" if enclosed else (
            "it has a bracket without its other" if name else "it has no name")
        raise SaeError(f"cannot read the concept '{line}': {what}; write '{plain}', or in full 'name (kind) = words | "
                       f"words without it'")
    if re.search(ARROW, name):
        both = ", ".join(part.strip() for part in re.split(ARROW, name) if part.strip())
        raise SaeError(f"'{name}' puts one concept in the place of another, which is chosen when erasing: write "
                       f"'{both}'")
    if any(c in name for c in RESERVED):
        plain = " ".join(re.sub(f"[{RESERVED}]", " ", name).split())
        raise SaeError(f"expected a concept name without , : # or line breaks, got '{name}': write '{plain}'")


def _refuse_signs(name: str) -> None:
    """What a name alone cannot have, because it means something else elsewhere."""
    if re.fullmatch(STRESSED, name):
        raise SaeError(f"'{name}' is how a prompt stresses a word: write '{name.strip('[]{} ')}'")
    if re.search(SEMICOLON, name):
        several = ", ".join(part.strip() for part in re.split(SEMICOLON, name) if part.strip())
        raise SaeError(f"'{name}' has a semicolon between words: write '{several}'")
    if "=" in name:
        raise SaeError(f"'{name}' says a concept in full: write '{name.partition('=')[0].strip()}' here, or the full "
                       f"line in SAEmnesia Find Concept")


def _is_balanced(name: str) -> bool:
    depth = 0
    for c in name:
        depth += (c == "(") - (c == ")")
        if depth < 0:
            return False
    return depth == 0


def default_templates(subjects: Sequence[Subject]) -> str:
    """Templates that use the kinds at hand."""
    kinds = {subject.kind for subject in subjects}
    other = tuple(f"a photo of {{{kind}}}" for kind in sorted(kinds - set(KINDS)))
    both = BOTH_TEMPLATES if {"object", "style"} <= kinds else ()
    return "\n".join((*(OBJECT_TEMPLATES if "object" in kinds else ()), *(STYLE_TEMPLATES if "style" in kinds else ()),
                      *both, *other))


def expand(templates: str, subjects: Sequence[Subject]) -> list[Prompt]:
    """Every template with every choice of subjects for its slots, in every way to say them, in a fixed order.

    Raises SaeError for a template without a slot or with a kind no concept has, for a concept no template says, for too
    few prompts to learn from and for more than `MOST` of a template or `MOST_OF_ALL`.
    """
    lines = [line.strip() for line in templates.splitlines() if line.strip()]
    prompts: list[Prompt] = []
    for line in lines:
        prompts += _filled(line, subjects)
        if len(prompts) > MOST_OF_ALL:
            raise SaeError(f"the templates make more than {MOST_OF_ALL} prompts: write fewer of them, or list fewer "
                           f"concepts")
    unsaid = set(range(len(subjects))) - {number for prompt in prompts for number in prompt.said}
    if unsaid:
        subject = subjects[min(unsaid)]
        raise SaeError(f"no prompt says '{subject.name}': add a template with {{{subject.kind}}} or {{}}")
    if len(prompts) < 2:
        raise SaeError(f"expected at least 2 prompts to learn from, got {len(prompts)}: add templates, for example "
                       f"'a photo of {{}}' and 'a painting of {{}}'")
    return prompts


def _filled(template: str, subjects: Sequence[Subject]) -> list[Prompt]:
    slots = re.findall(SLOT, template)
    if not slots:
        raise SaeError(f"the template '{template}' says no concept: write {{}} where the concept's words shall go")
    kinds = Counter(subject.kind for subject in subjects for _ in subject.ways)
    missing = [slot for slot in slots if slot and slot not in kinds]
    if missing:
        raise SaeError(f"the template '{template}' asks for a concept of kind '{missing[0]}', and none is listed; "
                       f"kinds: {', '.join(sorted(kinds))}")
    count = _count(slots, kinds)
    if count > MOST:
        raise SaeError(f"the template '{template}' makes {_in_digits(count)} prompts, more than {MOST}: use fewer "
                       f"slots")
    choices = [[i for i, subject in enumerate(subjects) if slot in ("", subject.kind)] for slot in slots]
    return [_prompt(template, [subjects[i] for i in pick], ways, pick) for pick in (_picks(choices) if count else ())
            for ways in itertools.product(*(subjects[i].ways for i in pick))]


def _count(slots: Sequence[str], kinds: Mapping[str, int]) -> int:
    """In how many ways slots can be filled, none twice; kinds: how many subjects each has, or ways to say them: then it
    is the most there can be."""
    asked = Counter(slots)
    anything = asked.pop("", 0)
    typed = math.prod(math.perm(kinds[kind], count) for kind, count in asked.items())
    return typed * math.perm(sum(kinds.values()) - asked.total(), anything) if typed else 0


def _picks(choices: Sequence[Sequence[int]], before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every choice of one number for each slot, no number twice."""
    if len(before) == len(choices):
        yield before
        return
    for number in choices[len(before)]:
        if number not in before:
            yield from _picks(choices, (*before, number))


def _in_digits(count: int) -> str:
    return str(count) if count < 10**12 else "over a million million"


def _prompt(template: str, chosen: list[Subject], ways: tuple[str, ...], numbers: tuple[int, ...]) -> Prompt:
    def text(left_out: int | None) -> str:
        words = iter([s.instead if i == left_out else way for i, (s, way) in enumerate(zip(chosen, ways, strict=True))])
        return _tidy(re.sub(SLOT, lambda _: next(words), template))
    return Prompt(text(None), numbers, tuple(text(i) for i in range(len(chosen))))


def _tidy(text: str) -> str:
    """`text` without what left-out words leave behind: empty places between commas, and words that only joined them.

    >>> _tidy("a photo of  and a castle, "), _tidy("a street with "), _tidy("a cat and , "), _tidy("a cat and  in fog")
    ('a photo of a castle', 'a street', 'a cat', 'a cat in fog')
    """
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in map(_unjoined, parts) if part)


def _unjoined(part: str) -> str:
    part = re.sub(rf"(^|\b(?:{JOINTS}) )(?:and|or) ", r"\1", part)
    part = re.sub(rf"\b(?:and|or) (?=(?:{JOINTS})\b)", "", part)
    return re.sub(rf"(?:(?:^| )(?:{JOINTS}|and|or))+$", "", part)


def hold_out(prompts: Sequence[Prompt], share: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to learn from, and others to measure on, in a random order: at most one in `share` of those that say a
    concept, of every concept that has so many."""
    count, held = Counter(number for prompt in prompts for number in prompt.said), Counter()
    chosen: dict[int, Prompt] = {}
    for i in torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist():
        if all(held[number] < count[number] // share for number in prompts[i].said):
            chosen[i] = prompts[i]
            held.update(prompts[i].said)
    return [prompt for i, prompt in enumerate(prompts) if i not in chosen], list(chosen.values())


def trial(number: int, held_out: Sequence[Prompt],
          prompts: Sequence[Prompt]) -> tuple[list[tuple[str, str]], list[str]]:
    """What to measure a concept on: texts that say it, each with the same without it, and texts that do not say it.
    They are of `held_out`, or of `prompts` where none of those will do; where all say it, the texts without it."""
    said, others = ([prompt for prompt in held_out if (number in prompt.said) == says]
                    or [prompt for prompt in prompts if (number in prompt.said) == says] for says in (True, False))
    pairs = [(prompt.text, prompt.without[prompt.said.index(number)]) for prompt in said]
    return pairs, [prompt.text for prompt in others] or [without for _, without in pairs]

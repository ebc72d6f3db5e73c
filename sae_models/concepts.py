"""The concept table: a name stands for one latent (or a few), with statistics by noise level; and the text
`cat, noto style:0.8, rose -> dog` that people write to choose concepts (`web/js/concept_text.js` reads it in the same
way).
"""
import difflib
import itertools
import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .errors import SaeError

KINDS = ("object", "style")
"""What a bracket behind a name may say; any other bracket is part of the name: `hatsune miku (vocaloid)`."""
RESERVED = ",:#\n"
"""What the name of a concept in a file cannot have."""
LINE_BREAKS = "\n\v\f\r\x1c-\x1e\x85\u2028\u2029"
SEPARATOR = f"[,{LINE_BREAKS}]|;(?=[ \\t])"
ARROW = "->|\u2192"
"""Between a concept and the one that is put in its place."""
DECIMAL_COMMA = rf"(:[ \t]*[+-]?[0-9]+),(?=[0-9]+[ \t]*(?:[,;{LINE_BREAKS}]|{ARROW}|\Z))"
NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
UNSEEN = ("Cc", "Cs")
EDGE = 1e-4
UNKNOWN = 1.0
"""The mean of a latent of which nothing is known."""
NEVER = 60_000.0
"""A threshold nothing comes above; finite in fp16."""
LONGEST, MOST = 200, 2000
"""Characters of a name, and concepts in one text."""
COMPARED = 5000
"""Names among which the nearest are looked for."""


@dataclass(frozen=True)
class Concept:
    """A name, its latents (rows of the SAE), what it is ("object", "style" or ""), and the words that say it in a
    prompt, where they are known.

    measured: how well it is erased, as shares of its effect: "removed" of it, and "touched" of what is not it;
    pictures, told_from: how many were painted to find it and the names of what it was told from, where it was a word
    that may be found anew with more of them.
    """
    name: str
    latents: tuple[int, ...]
    kind: str = ""
    description: str = ""
    measured: Mapping[str, float] | None = field(default=None, hash=False)
    pictures: int | None = None
    told_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip() or any(c in self.name for c in RESERVED):
            raise SaeError(f"expected a concept name without , : # or line breaks, got {self.name!r}")
        if not can_be_chosen(self.name):
            raise SaeError(f"the concept name {self.name[:LONGEST]!r} cannot be chosen: it needs at most {LONGEST} "
                           f"characters, all of them seen, no space at its edges and no kind at its end")
        if not self.latents or min(self.latents) < 0:
            raise SaeError(f"expected latents >= 0 for concept '{self.name}', got {list(self.latents)}")
        for what, share in (self.measured or {}).items():
            if not math.isfinite(share):
                raise SaeError(f"expected a number for '{what}' of concept '{self.name}', got {share}")


@dataclass(frozen=True)
class Choice:
    """A concept someone chose, and how strongly; None where they did not say. kind: "" where they did not say; into:
    what is put in its place, which has no strength of its own."""
    name: str
    strength: float | None = None
    kind: str = ""
    into: "Choice | None" = None


def parse(text: str) -> list[Choice]:
    """Read `Cats, Dogs:0.8`: names separated by commas, lines or `; `, each with an optional strength, which may
    have a decimal comma, an optional kind: `ink (style):0,8`, and optionally what is put in its place: `cat -> dog`.

    Raises SaeError for an empty list, a strength that is no finite number, a name that cannot be seen whole, one given
    twice, and a swap that is not whole.
    """
    choices = [_parse_item(item) for item in items(with_points(text))]
    if len(choices) > MOST:
        raise SaeError(f"{len(choices)} concepts are listed, and at most {MOST} can be chosen at once: keep fewer")
    if not choices:
        raise SaeError("no concept is chosen: tick one, or write for example 'cat' or 'cat:0.8, dog'")
    refuse_twice([choice.name for choice in choices])
    return choices


def items(text: str) -> list[str]:
    """What stands between separators, without space at its edges; nothing where nothing stands."""
    return [item for item in map(str.strip, re.split(SEPARATOR, text)) if item]


def with_points(text: str) -> str:
    """`text` with a point where a strength has a decimal comma: `cat:0,5` is `cat:0.5`."""
    return re.sub(DECIMAL_COMMA, r"\1.", text)


def is_number(text: str) -> bool:
    """Whether it is a finite number in digits."""
    return bool(re.fullmatch(NUMBER, text)) and math.isfinite(float(text))


def split_kind(text: str) -> tuple[str, str]:
    """A name and its kind, which is "" where the text says none.

    >>> split_kind("ink (style)"), split_kind("saber_(fate)")
    (('ink', 'style'), ('saber_(fate)', ''))
    """
    name, _, bracket = text.rpartition("(")
    kind = bracket.removesuffix(")").strip().lower()
    found = name.strip() and bracket.endswith(")") and kind in KINDS
    return (name.strip(), kind) if found else (text, "")


def refuse_unseen(name: str) -> None:
    """Raise SaeError for a name with a control character or half of a character, which nobody sees or types."""
    code = next((ord(c) for c in name if unicodedata.category(c) in UNSEEN), None)
    if code is not None:
        seen = "".join(c for c in name if unicodedata.category(c) not in UNSEEN)
        raise SaeError(f"there is a character that cannot be seen (U+{code:04X}) in '{seen}': write the name anew")


def refuse_twice(names: Sequence[str], what: str = "concept") -> None:
    """Raise SaeError when a name is listed twice, in whatever case."""
    times = Counter(name.casefold() for name in names)
    twice = next((name for name in names if times[name.casefold()] > 1), None)
    if twice:
        raise SaeError(f"{what} '{twice}' is listed twice: keep one of them")


def mentioned(choices: Sequence[Choice]) -> list[Choice]:
    """Every concept of these choices once, those that are put in the place of others too."""
    both = [one for choice in choices for one in (replace(choice, into=None), choice.into) if one]
    return list({one.name.casefold(): one for one in reversed(both)}.values())[::-1]


def can_be_chosen(name: str) -> bool:
    """Whether a text can name it: what is written is read back, and seen."""
    return (len(name) <= LONGEST and items(name) == [name] and split_kind(name) == (name, "")
            and not re.search(ARROW, name)
            and not any(unicodedata.category(c) in UNSEEN for c in name))


def _parse_item(item: str) -> Choice:
    refuse_unseen(item)
    said, *put = (part.strip() for part in re.split(ARROW, item))
    choice = _parse_choice(said, item)
    if len(put) > 1:
        raise SaeError(f"'{item}' has more than one arrow: write each swap by itself, for example 'cat -> dog'")
    return replace(choice, into=_parse_into(put[0], choice, item)) if put else choice


def _parse_into(text: str, choice: Choice, item: str) -> Choice:
    said, colon, number = (part.strip() for part in text.partition(":"))
    name, kind = split_kind(said)
    if not name:
        raise SaeError(f"'{item}' does not say what to put in its place: write for example '{choice.name} -> dog'")
    if colon:
        share = number if is_number(number) else "0.5"
        raise SaeError(f"'{item}' has a colon behind the arrow: a strength stands before it, as in "
                       f"'{choice.name}:{share} -> {name}'")
    if name.casefold() == choice.name.casefold():
        raise SaeError(f"'{item}' puts a concept in its own place: write another one behind the arrow, or '{name}' "
                       f"alone to erase it")
    return Choice(name, None, kind)


def _parse_choice(text: str, item: str) -> Choice:
    said, colon, number = (part.strip() for part in text.partition(":"))
    name, kind = split_kind(said)
    if not name:
        raise SaeError(f"'{item}' has no concept name: write for example 'cat:0.8'")
    if not colon:
        return Choice(name, None, kind)
    if not is_number(number):
        raise SaeError(_no_strength(text, name, number))
    return Choice(name, float(number), kind)


def _no_strength(item: str, name: str, number: str) -> str:
    plain, what = re.sub(r"[()\[\]{}]", "", name).strip(), f"'{number}' in '{item}' is not a strength"
    if plain and is_number(number.rstrip(")]} ")):
        return f"{what}, but how a prompt stresses a word: write '{plain}', or '{plain}:0.8' to erase less of it"
    as_name = f"'{item.replace(':', ' ')}' if the colon belongs to the name"
    if "(" in name:
        return f"{what}: write {as_name}"
    if number:
        return f"{what}: write a number, for example '{name}:0.8', or {as_name}"
    return f"{what}: write a number, for example '{name}:0.8'"


def format_choices(choices: list[Choice]) -> str:
    """The text `parse` reads back to the same choices."""
    return ", ".join(map(_format, choices))


def _format(choice: Choice) -> str:
    space = "" if choice.name.endswith(";") else " "
    name = f"{choice.name}{space}({choice.kind})" if choice.kind else choice.name
    text = name if choice.strength is None else f"{name}:{choice.strength!r}"
    return f"{text} -> {_format(choice.into)}" if choice.into else text


@dataclass(frozen=True)
class Statistics:
    """What a latent does at each noise level: one row a latent, one column a sigma, sigmas rising.

    sigmas [T]; thresholds [F, T]: it fires above this pre-activation; means [F, T]: its mean over all tokens of maps
    that show the concept, zeros included (SAeUron's mu, section 4.2).
    """
    sigmas: tuple[float, ...] = (1.0,)
    thresholds: Tensor = field(default_factory=lambda: torch.zeros(0, 1))
    means: Tensor = field(default_factory=lambda: torch.zeros(0, 1))

    @classmethod
    def unknown(cls, n_latents: int) -> "Statistics":
        """No statistics: a latent fires wherever it is positive."""
        return cls((1.0,), torch.zeros(n_latents, 1), torch.full((n_latents, 1), UNKNOWN))

    def at(self, sigma: float, table: Tensor) -> Tensor:
        """The column of `table` [F, T] at `sigma`, linear in log sigma, held constant beyond the ends: [F]."""
        right = bisect_left(self.sigmas, sigma)
        if right in (0, len(self.sigmas)):
            return table[:, min(right, len(self.sigmas) - 1)]
        low, high = self.sigmas[right - 1], self.sigmas[right]
        share = math.log(sigma / low) / math.log(high / low)
        return torch.lerp(table[:, right - 1], table[:, right], share)

    def select(self, rows: list[int]) -> "Statistics":
        return Statistics(self.sigmas, self.thresholds[rows], self.means[rows])

    def joined(self, other: "Statistics") -> "Statistics":
        """The rows of both, at every noise level that one of them has: the same at every sigma."""
        sigmas = tuple(sorted({*self.sigmas, *other.sigmas}))
        tables = (torch.cat([torch.stack([part.at(sigma, getattr(part, name)) for sigma in sigmas], 1)
                             for part in (self, other)]) for name in ("thresholds", "means"))
        return Statistics(sigmas, *tables)

    def stepped(self) -> "Statistics":
        """Constant around each noise level, changing halfway to the next (in log sigma)."""
        middles = [math.sqrt(low * high) for low, high in itertools.pairwise(self.sigmas)]
        below = [self.sigmas[0], *(middle * (1 + EDGE) for middle in middles)]
        above = [*(middle * (1 - EDGE) for middle in middles), self.sigmas[-1] * (1 + EDGE)]
        edges = [edge for pair in zip(below, above, strict=True) for edge in pair]
        sigmas = tuple(torch.tensor(edges, dtype=torch.float32).tolist())  # as a file has them
        return Statistics(sigmas, self.thresholds.repeat_interleave(2, 1), self.means.repeat_interleave(2, 1))


def by_name(concepts: Iterable[Concept]) -> dict[str, Concept]:
    """The concepts by name in lower case; of two with one name, the first."""
    found: dict[str, Concept] = {}
    for concept in concepts:
        found.setdefault(concept.name.casefold(), concept)
    return found


def find(concepts: Mapping[str, Concept] | Iterable[Concept], name: str, d_sae: int, where: str) -> Concept:
    """The concept called `name` in any case; `#123` means latent 123. concepts: all there are, or those `by_name`;
    `where` names the file in the error.

    Raises SaeError for an unknown name, with the nearest ones.
    """
    if name.startswith("#"):
        return _numbered(name, d_sae, where)
    known = concepts if isinstance(concepts, Mapping) else by_name(concepts)
    if name.casefold() in known:
        return known[name.casefold()]
    if not known:
        raise SaeError(f"{where} has no concept names, so '{name}' cannot be found: "
                       f"write a latent's number such as '#12', or train concepts first")
    some = list(itertools.islice(known, COMPARED))
    near = difflib.get_close_matches(name.casefold()[:LONGEST], some, n=3, cutoff=0.3) or some[:3]
    raise SaeError(f"{where} has no concept '{name[:LONGEST]}'; nearest: {', '.join(known[n].name for n in near)}")


def _numbered(name: str, d_sae: int, where: str) -> Concept:
    number = int(name[1:]) if re.fullmatch(r"[0-9]{1,18}", name[1:]) else -1
    if not 0 <= number < d_sae:
        raise SaeError(f"{where} has latents #0 to #{d_sae - 1}, got '{name[:LONGEST]}'")
    return Concept(f"latent {number}", (number,))

"""What is erased, which scenes are painted for it, and what counts as right.

For an erased object (styles and grounds are symmetric), in per cent:

- UA: share of the pictures whose prompt says it that no longer show it;
- IRA: share of the pictures whose prompt does not say it, in which all that is said of its kind is right;
- CRA: share of all pictures in which what is said of the other kinds is right (UnlearnCanvas's definitions); where an
  object is erased and nothing else is recognisable there is no style to tell: such pictures are left out here;
- in-scene: share of the pictures whose prompt says it beside something of its kind, or of another, that is to stay, in
  which all of that is right: for an object the other object, style and ground, for a style or ground both objects;
- nothing: share of the pictures that say it in which nothing is recognisable, alone and in scenes apart: UA alone would
  praise a destroyed picture.
"""
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import cycle

import torch

from .canvas import BACKGROUNDS, Scene
from .icons import OBJECTS, STYLES
from .judge import Verdict
from .text import HELD_OUT, TEMPLATES, prompt

KINDS = {"object": OBJECTS, "style": STYLES, "ground": BACKGROUNDS}
NAMES = {"object": "{}", "style": "{} style", "ground": "{} ground"}
NEIGHBOURS = (("cat", "dog", "bear"), ("rose", "sunflower"))
SCENES_A_STYLE = 12


@dataclass(frozen=True)
class Shot:
    """A picture to paint: what its prompt says, and in which words."""
    scene: Scene
    template: str

    @property
    def text(self) -> str:
        return prompt(self.scene, self.template)

    def without(self, kind: str, erased: Sequence[int]) -> "Shot":
        """The same with what is erased left unsaid."""
        objects, style, ground = self.scene
        if kind == "object":
            objects = tuple(i for i in objects if i not in erased)
        style = -1 if kind == "style" and style in erased else style
        ground = -1 if kind == "ground" and ground in erased else ground
        return Shot(Scene(objects, style, ground), self.template)


@dataclass(frozen=True)
class Task:
    """Concepts to erase (indices of one kind), and what is painted."""
    kind: str
    erased: tuple[int, ...]
    shots: tuple[Shot, ...]

    @property
    def names(self) -> list[str]:
        return [NAMES[self.kind].format(KINDS[self.kind][i]) for i in self.erased]

    def says(self, shot: Shot) -> bool:
        return shot.without(self.kind, self.erased) != shot


class _Deck:
    """Deals scenes at random, the same ones for the same seed; each choice comes once before any comes again."""

    def __init__(self, seed: int, templates: Sequence[str]) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.templates = cycle(templates)

    def order(self, among: Sequence[int]) -> list[int]:
        return [among[i] for i in torch.randperm(len(among), generator=self.generator).tolist()]

    def forever(self, among: Sequence[int]):
        while True:
            yield from self.order(among)

    def shot(self, objects: Sequence[int], style: int, ground: int) -> Shot:
        return Shot(Scene(tuple(self.order(objects)), style, ground), next(self.templates))


def object_task(erased: Sequence[int], templates: Sequence[str] = TEMPLATES, seed: int = 0) -> Task:
    """Each erased object alone and beside one that stays, in every style (in one of them, where many are erased); and
    scenes of all the others."""
    deck = _Deck(1000 * seed + 31 * erased[0] + len(erased), templates)
    others = [i for i in range(len(OBJECTS)) if i not in erased]
    styles, grounds, beside = (deck.forever(among) for among in (range(len(STYLES)), range(len(BACKGROUNDS)), others))
    many = len(erased) > 3
    said = [deck.shot(objects, style, next(grounds)) for obj in erased
            for style in [next(styles) for _ in range(1 if many else len(STYLES))]
            for objects in ((obj,), (obj, next(beside)))]
    order = deck.order(others)
    kept = [deck.shot(order[i:i + 2], next(styles), next(grounds)) for i in range(0, len(order), 2)]
    return Task("object", tuple(erased), (*said, *kept))


def other_task(kind: str, erased: Sequence[int], templates: Sequence[str] = TEMPLATES, seed: int = 0) -> Task:
    """Every object, two a scene, in each erased style (or on each ground), and again in the others."""
    deck = _Deck(1000 * seed + 31 * erased[0] + len(erased) + 500, templates)
    stay = [i for i in range(len(KINDS[kind])) if i not in erased]
    rest = deck.forever(range(len(BACKGROUNDS if kind == "style" else STYLES)))

    def scenes(mine: Sequence[int]) -> list[Shot]:
        own, order = deck.forever(mine), deck.order(range(len(OBJECTS)))
        pairs = [order[i:i + 2] for i in range(0, 2 * SCENES_A_STYLE, 2)]
        pairs[::4] = [pair[:1] for pair in pairs[::4]]
        both = [(next(own), next(rest)) for _ in pairs]
        return [deck.shot(pair, *(place if kind == "style" else place[::-1]))
                for pair, place in zip(pairs, both, strict=True)]
    return Task(kind, tuple(erased), (*scenes(erased), *scenes(stay)))


def task(kind: str, erased: Sequence[int], templates: Sequence[str] = TEMPLATES, seed: int = 0) -> Task:
    return object_task(erased, templates, seed) if kind == "object" else other_task(kind, erased, templates, seed)


def all_names() -> list[str]:
    """Every concept of MiniCanvas."""
    return [NAMES[kind].format(name) for kind, names in KINDS.items() for name in names]


def task_of(name: str, seed: int = 0) -> Task:
    """The task of one concept by its name."""
    word, _, kind = name.rpartition(" ") if name.endswith((" style", " ground")) else (name, "", "object")
    return task(kind, [KINDS[kind].index(word)], seed=seed)


def several(kind: str, count: int, sets: int, among: Sequence[int]) -> list[Task]:
    """`sets` fixed random choices of `count` concepts erased at once, none where there are fewer."""
    generator = torch.Generator().manual_seed(count)
    orders = [torch.randperm(len(among), generator=generator)[:count].tolist() for _ in range(sets)]
    return [task(kind, [among[i] for i in order], seed=seed) for seed, order in enumerate(orders)] \
        if len(among) >= count else []


def neighbours() -> list[Task]:
    """Each of some objects that look alike erased; the others like it are to be kept, in every style."""
    tasks = []
    for group in NEIGHBOURS:
        for name in group:
            erased = OBJECTS.index(name)
            alike = [OBJECTS.index(other) for other in group if other != name]
            deck = _Deck(77 + erased, TEMPLATES)
            grounds = deck.forever(range(len(BACKGROUNDS)))
            shots = [deck.shot((i,), style, next(grounds)) for i in (erased, *alike) for style in range(len(STYLES))]
            tasks.append(Task("object", (erased,), tuple(shots)))
    return tasks


def held_out(tasks: Sequence[Task]) -> list[Task]:
    """The same concepts with prompts in words that no training said."""
    return [task(one.kind, one.erased, HELD_OUT, seed=9) for one in tasks]


@dataclass(frozen=True)
class Score:
    """Percentages of one task, or their mean over tasks; None where nothing of the sort was painted."""
    UA: float | None = None
    IRA: float | None = None
    CRA: float | None = None
    in_scene: float | None = None
    nothing_alone: float | None = None
    nothing_in_scene: float | None = None


def rights(shots: Sequence[Shot], verdict: Verdict) -> dict[str, torch.Tensor]:
    """{kind: bool [n]}: what a prompt says of a kind is what the picture shows; unsaid is right."""
    wanted = torch.zeros_like(verdict.objects)
    for row, shot in enumerate(shots):
        wanted[row, list(shot.scene.objects)] = True
    style, ground = (torch.tensor([shot.scene[i] for shot in shots]) for i in (1, 2))
    return {"object": (verdict.objects | ~wanted).all(1), "style": (verdict.style == style) | (style < 0),
            "ground": (verdict.background == ground) | (ground < 0)}


def shown(task: Task, verdict: Verdict) -> torch.Tensor:
    """bool [n]: the picture shows something that is erased, and that its prompt says."""
    flags = []
    for row, shot in enumerate(task.shots):
        if task.kind == "object":
            flags.append(any(bool(verdict.objects[row, i]) for i in shot.scene.objects if i in task.erased))
        else:
            own = (verdict.style if task.kind == "style" else verdict.background)[row]
            seen = task.kind == "ground" or not bool(verdict.nothing[row])
            flags.append(seen and int(own) == shot.scene[1 if task.kind == "style" else 2])
    return torch.tensor(flags)


def score(task: Task, verdict: Verdict) -> Score:
    """Judge a task's pictures, in the order of `task.shots`."""
    left = [shot.without(task.kind, task.erased) for shot in task.shots]
    right, said = rights(left, verdict), torch.tensor([task.says(shot) for shot in task.shots])
    scene = torch.tensor([len(shot.scene.objects) > 1 for shot in task.shots])
    some = ~verdict.nothing
    cross = [right[kind] for kind in KINDS if kind != task.kind]
    sure = some | torch.tensor(task.kind != "object")  # where an object is gone, nothing may be left to tell a style by
    own = right["object"] & right["style"] & right["ground"]
    return Score(_share(~shown(task, verdict)[said]), _share(right[task.kind][~said]),
                 _share((cross[0] & cross[1])[sure]), _share(own[said & (scene | torch.tensor(task.kind != "object"))]),
                 _share(~some[said & ~scene]), _share(~some[said & scene]))


def _share(flags: torch.Tensor) -> float | None:
    return 100 * float(flags.float().mean()) if len(flags) else None


def mean(scores: Sequence[Score]) -> Score:
    """The mean of each figure over the tasks that have it."""
    def of(name: str) -> float | None:
        values = [value for one in scores if (value := getattr(one, name)) is not None]
        return sum(values) / len(values) if values else None
    return Score(**{field.name: of(field.name) for field in fields(Score)})


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with ties at their mean rank."""
    def ranks(values: Sequence[float]) -> torch.Tensor:
        x = torch.tensor(values)
        return (x[:, None] > x).float().sum(1) + ((x[:, None] == x).float().sum(1) - 1) / 2
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])

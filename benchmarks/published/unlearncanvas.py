"""UnlearnCanvas with its own checkpoint and classifiers, for who has them: UA, IRA, CRA by the papers' definitions.

    python -m benchmarks.published.unlearncanvas --checkpoint style50.safetensors --sae SAE.safetensors \\
        --style-classifier style50.pth --object-classifier style50_cls.pth

paints by a running ComfyUI, with each of 20 objects erased in turn (--styles: of 50 styles; --sequence: nine objects,
one more each time), "An image of {object} in {style} style." for all objects and styles, 100 DDIM steps, guidance 9,
and "An image of {object}." too, as the SAE papers do. Of what a prompt says, the classifiers see in the picture:

- UA: share of the pictures that say what is erased, in which it is not seen;
- IRA: mean over all others of its kind of the share of their pictures in which they are seen;
- CRA: the same mean over the other kind, in the pictures that say a style;
- alone: CRA of the objects as SAeUron's scripts count it where a style is erased: in pictures that say no style;
- retained, in a sequence: the mean of IRA and CRA (SAeUron's `avg_accuracy_style_sequential`).

Pictures lie in --out as the papers' scripts name them, so theirs can judge them too. A run that was stopped goes on.
"""
import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from torch import nn

from sae_models.errors import SaeError
from sae_models.storage import write_file, write_json
from tools.comfy_host import ComfyServer

from . import classifiers, painting
from .painting import Progress, Shot, Way

OBJECTS = ("Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs",
           "Horses", "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls")
PLAIN = "Seed_Images"
"""A label of the style classifier that no prompt says: photographs."""
STYLE_LABELS = (
    "Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm", "Color_Fantasy",
    "Comic_Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn", "Expressionism", "Fauvism",
    "French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield", "Impressionism", "Ink_Art", "Joy", "Liquid_Dreams",
    "Magic_Cube", "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic", "Neon_Lines", "On_Fire", "Pastel",
    "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust", PLAIN, "Sketch", "Sponge_Dabbed", "Structuralism",
    "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow", "Warm_Love", "Warm_Smear", "Watercolor",
    "Winter")
STYLES = tuple(style for style in STYLE_LABELS if style != PLAIN)
QUICK = ("Cats", "Dogs", "Flowers", "Towers"), ("Van_Gogh", "Watercolor", "Winter")
NINE = OBJECTS[:9]
"""Which nine the paper erased, and in which order, its published code does not say."""
PAPERS = {
    "objects": {
        "G-SAE + PER": (94.02, 96.11, 95.87), "SAEmnesia + PER": (91.37, 91.92, 97.97),
        "SAeUron + PER": (85.37, 81.14, 86.55), "SAEmnesia": (94.65, 91.39, 88.48), "SAeUron": (87.16, 85.57, 74.14),
        "ESD": (92.15, 55.78, 44.23), "UCE": (94.31, 39.35, 34.67), "CA": (46.67, 90.11, 81.97),
        "SalUn": (86.91, 96.35, 99.59), "SEOT": (23.25, 95.57, 82.71), "SPM": (71.25, 90.79, 81.65),
        "EDiff": (86.67, 94.03, 48.48), "SHS": (80.73, 81.15, 67.99)},
    "styles": {
        "SAEmnesia": (96.60, 98.67, 99.30), "SAeUron": (95.80, 99.10, 99.40), "ESD": (98.58, 80.97, 93.96),
        "UCE": (98.40, 60.22, 47.71), "CA": (60.82, 96.01, 92.70), "SalUn": (86.26, 90.39, 95.08),
        "SEOT": (56.90, 94.68, 84.31), "SPM": (60.94, 92.39, 84.33), "EDiff": (92.42, 73.91, 98.93),
        "SHS": (95.84, 80.42, 43.27)},
    "sequence": {"SAEmnesia": (92.4, 60.9), "SAeUron": (64.0, 48.4)},
}
"""UA, IRA, CRA in per cent (arXiv 2509.21379, 2501.18052, 2606.31699); after nine objects: UA, retained."""


@dataclass(frozen=True)
class Picture:
    """What a prompt says; style: None where it says none."""
    object: str
    style: str | None
    seed: int

    @property
    def file(self) -> str:
        return f"{self.style}_{self.object}_seed{self.seed}.jpg" if self.style else f"{self.object}_seed{self.seed}.jpg"

    def shot(self, cfg: float, side: int) -> Shot:
        """The same noise whatever is erased, and another one for every prompt."""
        style = f" in {self.style.replace('_', ' ')} style" if self.style else ""
        number = OBJECTS.index(self.object) * len(STYLE_LABELS) + STYLE_LABELS.index(self.style or PLAIN)
        return Shot(f"An image of {self.object}{style}.", self.seed * 10_000 + number, cfg, side, side)


@dataclass(frozen=True)
class Judges:
    """The classifiers, and what tells their files from others."""
    style: nn.Module
    object: nn.Module
    files: list[list[str | int]]

    def see(self, paths: Sequence[Path]) -> list[list[int]]:
        """The style's and the object's label of each picture."""
        return [list(pair) for pair in zip(classifiers.labels_of(self.style, paths),
                                           classifiers.labels_of(self.object, paths), strict=True)]


def pictures_of(objects: Sequence[str], styles: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
    return [Picture(o, style, seed) for seed in seeds for style in (*styles, None) for o in objects]


@dataclass(frozen=True)
class Bench:
    """Where and how everything is painted and judged."""
    host: ComfyServer
    way: Way
    pictures: Sequence[Picture]
    judges: Judges
    out: Path
    cfg: float
    side: int

    def missing(self, erased: Sequence[str]) -> list[Picture]:
        return [one for one in self.pictures if not (self.folder(erased) / one.file).exists()]

    def folder(self, erased: Sequence[str]) -> Path:
        return self.out / ("_".join(erased) or "none")

    def paint(self, erased: Sequence[str], concepts: str, progress: Progress) -> None:
        missing, folder = self.missing(erased), self.folder(erased)
        folder.mkdir(parents=True, exist_ok=True)
        shots = [one.shot(self.cfg, self.side) for one in missing]
        for image, one in zip(painting.paint(self.host, self.way, concepts, shots, progress), missing, strict=True):
            write_file(folder / one.file, lambda part, image=image: image.save(part, "JPEG"))

    def labels(self, erased: Sequence[str]) -> dict[Picture, list[int]]:
        """The judges' labels of every picture, kept beside them."""
        path = self.folder(erased) / "labels.json"
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        seen = kept["labels"] if kept.get("judges") == self.judges.files else {}
        new = [one.file for one in self.pictures if one.file not in seen]
        if new:
            seen |= dict(zip(new, self.judges.see([path.with_name(file) for file in new]), strict=True))
            write_json(path, {"judges": self.judges.files, "labels": seen})
        return {one: seen[one.file] for one in self.pictures}


def accuracy(labels: Mapping[Picture, Sequence[int]], kind: str, alone: bool | None = None) -> dict[str, float]:
    """{object or style: share of the pictures saying it in which it is seen}. alone: only of pictures that say a style
    (False), or none (True)."""
    seen: dict[str, list[bool]] = {}
    for one, (style, thing) in labels.items():
        if alone is None or alone == (one.style is None):
            if kind == "objects":
                seen.setdefault(one.object, []).append(OBJECTS[thing] == one.object)
            elif one.style:
                seen.setdefault(one.style, []).append(STYLE_LABELS[style] == one.style)
    return {name: mean(rights) for name, rights in seen.items()}


def figures(labels: Mapping[Picture, Sequence[int]], kind: str, erased: Sequence[str]) -> dict[str, float]:
    """UA, IRA, CRA and retained in per cent, for concepts of a kind ("objects" or "styles"); alone for styles."""
    other = "styles" if kind == "objects" else "objects"
    own, cross = accuracy(labels, kind), accuracy(labels, other, alone=False)
    found = {"UA": 1 - mean(own[name] for name in erased),
             "IRA": mean(share for name, share in own.items() if name not in erased), "CRA": mean(cross.values())}
    found["retained"] = (found["IRA"] + found["CRA"]) / 2
    if kind == "styles":
        found["alone"] = mean(accuracy(labels, other, alone=True).values())
    return {name: round(100 * share, 2) for name, share in found.items()}


def averaged(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(mean(row[name] for row in rows), 2) for name in rows[0]}


# --- the command ---------------------------------------------------------------------------------------


def table(kind: str, each: Mapping[str, Mapping[str, float]], pictures: int) -> str:
    """Ours, and the papers' rows; of a sequence after each step, UA and retained. pictures: of each task."""
    heads = ("UA", "retained") if kind == "sequence" else ("UA", "IRA", "CRA", "mean")
    ours = {f"ours, mean of {len(each)}": averaged(list(each.values()))}
    if kind == "sequence":
        ours = {f"ours, {i + 1} erased": row for i, row in enumerate(each.values())}
    rows = {name: [row[head] for head in heads if head in row] for name, row in ours.items()}
    rows |= {f"{name} (paper)": list(row) for name, row in PAPERS[kind].items()}
    alone = [f"CRA as SAeUron's scripts count it: {row['alone']:.2f}" for row in ours.values() if "alone" in row]
    lines = [f"\n{f'{kind}, {pictures} pictures each':32}" + "".join(f"{head:>10}" for head in heads)]
    for name, row in rows.items():
        values = row if kind == "sequence" else [*row, mean(row)]
        lines.append(f"{name:32}" + "".join(f"{value:10.2f}" for value in values))
    return "\n".join(lines + alone)


def tasks_of(asked: argparse.Namespace) -> dict[str, list[tuple[str, ...]]]:
    """{kind: what is erased together}. SaeError for a name that is not the benchmark's, or not painted."""
    objects, styles = QUICK if asked.quick else (OBJECTS, STYLES)
    if asked.objects is None and asked.styles is None and asked.sequence is None:
        asked.objects = []
    chosen = {"objects": (asked.objects, objects, objects), "styles": (asked.styles, styles, styles),
              "sequence": (asked.sequence, objects, objects[:2] if asked.quick else NINE)}
    tasks = {}
    for kind, (names, known, usual) in chosen.items():
        if unknown := set(names or ()) - set(known):
            raise SaeError(f"--{kind} {min(unknown)}: not one of {', '.join(known)}")
        if names is not None:
            alone = list(names or usual)
            tasks[kind] = [tuple(alone[:i + 1]) if kind == "sequence" else (name,) for i, name in enumerate(alone)]
    return tasks


def given_names(path: Path | None) -> dict[str, str]:
    """A JSON file {"Dogs": "dog, puppy"}: what the SAE calls the benchmark's concepts."""
    try:
        names = json.loads(path.read_text("utf-8")) if path else {}
        unknown = set(names) - {*OBJECTS, *STYLES}
        if unknown or not all(isinstance(called, str) and called for called in names.values()):
            raise ValueError(f"{min(unknown)} is none" if unknown else "a name is no text")
    except (OSError, ValueError, TypeError) as error:
        raise SaeError(f'{path}: expected {{"Dogs": "dog", ...}} with names of the benchmark ({error})') from error
    return names


def run(bench: Bench, tasks: Mapping[str, Sequence[tuple[str, ...]]], called: Mapping[str, str],
        results: dict) -> dict:
    """Paint and judge everything, writing results after each task."""
    sets = list(dict.fromkeys([(), *(erased for of in tasks.values() for erased in of)]))
    total = len(sets) * len(bench.pictures)
    progress = Progress(total, total - sum(len(bench.missing(erased)) for erased in sets))
    bench.paint((), "", progress)
    plain = bench.labels(())
    results["nothing erased"] = {kind: round(100 * mean(accuracy(plain, kind).values()), 2)
                                 for kind in ("objects", "styles")}
    print("nothing erased: right in {objects} % of objects, {styles} % of styles".format(**results["nothing erased"]))
    for kind, of in tasks.items():
        each = results[kind] = {}
        for erased in of:
            bench.paint(erased, bench.way.concepts([called[name] for name in erased]), progress)
            each["_".join(erased)] = row = figures(bench.labels(erased), "styles" if kind == "styles" else "objects",
                                                   erased)
            print(f"{' and '.join(erased)} erased: {row}", flush=True)
            write_json(bench.out / "unlearncanvas.json", results)
        print(table(kind, each, len(bench.pictures)), flush=True)
    return results


def options() -> argparse.ArgumentParser:
    parser = painting.options(__doc__, "output/unlearncanvas", 100)
    parser.add_argument("--style-classifier", type=Path, required=True, metavar="FILE", help="style50.pth")
    parser.add_argument("--object-classifier", type=Path, required=True, metavar="FILE", help="style50_cls.pth")
    parser.add_argument("--objects", nargs="*", metavar="NAME", help="erase these objects in turn, or all 20")
    parser.add_argument("--styles", nargs="*", metavar="NAME", help="erase these styles in turn, or all 50")
    parser.add_argument("--sequence", nargs="*", metavar="NAME", help="erase these objects, one more each time")
    parser.add_argument("--concepts-map", type=Path, metavar="FILE", help='{"Dogs": "dog"}: what the SAE calls them')
    parser.add_argument("--seeds", type=int, nargs="+", default=[188], help="188 as the SAE papers' scripts; "
                        "UnlearnCanvas has 188 288 588 688 888")
    parser.add_argument("--guidance", type=float, default=9.0, help="9")
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels (512)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    asked = options().parse_args(argv)
    with painting.server(asked) as host:
        way, tasks = painting.way_of(asked), tasks_of(asked)
        files = (asked.style_classifier, STYLE_LABELS), (asked.object_classifier, OBJECTS)
        models = [classifiers.load(path, labels, classifiers.vit_large) for path, labels in files]
        judges = Judges(*models, [[path.name, path.stat().st_size] for path, _ in files])
        answer, given = painting.told(host, way), given_names(asked.concepts_map)
        called = painting.matched(sorted({name for of in tasks.values() for erased in of for name in erased}), answer,
                                  way, given)
        seeds = asked.seeds[:1] if asked.quick else asked.seeds
        settings = painting.keep_apart(asked.out, way, answer, {"guidance": asked.guidance, "side": asked.side,
                                                                "concepts map": given})
        pictures = pictures_of(*(QUICK if asked.quick else (OBJECTS, STYLES)), seeds)
        bench = Bench(host, way, pictures, judges, asked.out, asked.guidance, asked.side)
        run(bench, tasks, called, {"settings": settings, "seeds": seeds, "quick": asked.quick, "papers": PAPERS})
    print(f"\nwritten: {asked.out / 'unlearncanvas.json'}")


if __name__ == "__main__":
    main()

"""Train the judge on scenes as a diffusion model would return them: moved, softened, out of a VAE, or ruined.

    python -m benchmarks.minicanvas.train_judge --out run --vae benchmarks/minicanvas/weights/vae.safetensors

Half of each batch is rendered afresh; the other half comes from a pool of pictures that went through the VAE.
"""
import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from sae_models.learning.sparse import bfloat16_is_fast

from .canvas import BACKGROUNDS, CANVAS_PX, Scene, Spot, picture, random_pictures, random_scene
from .harness import Run, TrainConfig, save_atomically
from .icons import OBJECTS, STYLES
from .judge import PRESENT, Judge, load_judge
from .ruins import RUINS, Ruin, blend, halves, melted, randint, ruined_picture, ruined_scene, shuffled, spots, uniform

LATENT_PX = 8
LATENT_NOISE = 0.15          # at most, of a latent's spread
STATIC_NOISE = (1.5, 3.0)    # of a latent's spread: what it decodes to is no drawing any more
NOTHING, PARTLY = 0.26, 0.2
"""Shares of pictures where all drawings, or one of two, are ruined."""
TAUGHT = (*RUINS, blend, blend, halves, halves, shuffled)
"""Ruins as often as they are hard to tell from drawings."""
DROWNED = 0.15
"""Share of the pool where the ruin is noise in the latents."""
IGNORED = -100               # the style of a picture that shows nothing

Decode = Callable[[torch.Tensor, torch.Generator, torch.Tensor], torch.Tensor]
"""(pictures, generator, noise [n, 1, 1 or h, 1 or w] in the latents' spread) to pictures."""


class Examples(NamedTuple):
    """n pictures with what is whole in them."""
    pictures: torch.Tensor    # [n, 3, h, w], float in 0..1 or uint8
    objects: torch.Tensor     # bool [n, 24]
    style: torch.Tensor       # long [n], IGNORED where there are no objects
    background: torch.Tensor  # long [n]

    def at(self, which: torch.Tensor) -> "Examples":
        return Examples(*(part[which] for part in self))

    def seen_as(self, pictures: torch.Tensor) -> "Examples":
        return self._replace(pictures=pictures)


def joined(*parts: Examples) -> Examples:
    return Examples(*(torch.cat(part) for part in zip(*parts, strict=True)))


def labelled(pictures: torch.Tensor, scenes: list[Scene]) -> Examples:
    objects = torch.zeros(len(scenes), len(OBJECTS), dtype=torch.bool)
    for row, scene in zip(objects, scenes, strict=True):
        row[list(scene.objects)] = True
    style = torch.tensor([scene.style if scene.objects else IGNORED for scene in scenes])
    return Examples(pictures, objects, style, torch.tensor([scene.background for scene in scenes]))


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures * 255).round().byte()


# What is rendered -----------------------------------------------------------------------------------------------

def ruined(n: int, whole: int, generator: torch.Generator, kinds: tuple[Ruin, ...] = RUINS) -> Examples:
    """Scenes of ruins, `whole` drawings in each left whole."""
    made = [ruined_scene(whole, generator) for _ in range(n)]
    pictures = [ruined_picture(scene, ruins, generator, kinds) for scene, ruins in made]
    return labelled(torch.stack(pictures), [scene for scene, _ in made])


def mixture(n: int, generator: torch.Generator) -> Examples:
    """Mostly whole scenes, some ruined or ruined in part."""
    nothing, partly = round(n * NOTHING), round(n * PARTLY)
    return joined(*(ruined(count, whole, generator, TAUGHT) for count, whole in
                    ((n - nothing - partly, -1), (nothing, 0), (partly, 1))))


def noise_in(places: list[Spot], level: float) -> torch.Tensor:
    """[1, h, w] in latents: `level` under the drawings at `places`, 0 elsewhere."""
    side = CANVAS_PX // LATENT_PX
    noise = torch.zeros(1, side, side)
    for left, top, size in places:
        rows, columns = (slice(edge // LATENT_PX, -(-(edge + size) // LATENT_PX)) for edge in (top, left))
        noise[:, rows, columns] = level
    return noise


def drowned(n: int, decode: Decode, generator: torch.Generator) -> Examples:
    """Scenes some of whose drawings, or all, are lost in noise of the latents."""
    pictures, noises, kept = [], [], []
    for _ in range(n):
        scene = random_scene(generator)
        whole, places = randint(0, len(scene.objects) - 1, generator), spots(len(scene.objects), generator)
        pictures.append(picture(scene, places))
        noise = noise_in(places[whole:], float(uniform(*STATIC_NOISE, (), generator)))
        noises.append(noise * (noise_in(places[:whole], 1.0) == 0))
        kept.append(scene._replace(objects=scene.objects[:whole]))
    return labelled(decode(torch.stack(pictures), generator, torch.stack(noises)), kept)


# The pool -------------------------------------------------------------------------------------------------------

def vae_decode(path: Path, device: str) -> Decode:
    """Through the VAE, with noise on the way."""
    from .models import new_vae
    vae = new_vae()
    vae.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    vae.requires_grad_(False).to(device)

    def through(pictures: torch.Tensor, extra: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        latent = vae.taesd_encoder(pictures.to(device).contiguous(memory_format=torch.channels_last)).float()
        latent = latent + (extra * scale).to(device) * latent.std()
        return vae.taesd_decoder(latent).float().clamp(0, 1).cpu()

    def decode(pictures: torch.Tensor, generator: torch.Generator, noise: torch.Tensor) -> torch.Tensor:
        side = CANVAS_PX // LATENT_PX
        extra = torch.randn(len(pictures), 4, side, side, generator=generator)
        parts = (part.split(50) for part in (pictures, extra, noise.expand(len(pictures), -1, -1, -1)))
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16_is_fast(device)):
            return torch.cat([through(*part) for part in zip(*parts, strict=True)])
    return decode


def decoded_pool(n: int, decode: Decode, generator: torch.Generator) -> Examples:
    lost = round(n * DROWNED)
    whole = mixture(n - lost, generator)
    noise = uniform(0, LATENT_NOISE, (n - lost, 1, 1, 1), generator)
    pool = joined(whole.seen_as(decode(whole.pictures, generator, noise)), drowned(lost, decode, generator))
    return pool.seen_as(to_bytes(pool.pictures))


def load_pool(path: Path, n: int, decode: Decode, seed: int = 1) -> Examples:
    """What went through the VAE, made once and kept at `path`."""
    if not path.exists():
        print(f"drawing {path.stem}", flush=True)
        save_atomically(decoded_pool(n, decode, torch.Generator().manual_seed(seed))._asdict(), path)
    return Examples(**load_file(path))


# Augmentation: every function takes and returns pictures [n, 3, h, w] in 0..1 -----------------------------------

def moved(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to 5 px, zoom and stretch by up to 10 %, turn by up to 5 degrees; a mirror lies at the border."""
    n = len(pictures)
    angle = uniform(-0.09, 0.09, (n,), generator)
    zoom = uniform(0.92, 1.1, (n, 1, 1), generator) * uniform(0.97, 1.03, (n, 2, 1), generator)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    theta = torch.cat([turn * zoom, uniform(-0.1, 0.1, (n, 2, 1), generator)], 2)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def tinted(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mild changes of each channel's contrast and level."""
    n = len(pictures)
    contrast = uniform(0.8, 1.15, (n, 1, 1, 1), generator) * uniform(0.93, 1.07, (n, 3, 1, 1), generator)
    return 1 - contrast * (1 - pictures) - uniform(-0.03, 0.05, (n, 1, 1, 1), generator)


def blurred(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian blur of 0.4 to 1.8 px, as one matrix for rows and columns."""
    sigma = float(uniform(0.4, 1.8, (), generator))
    place = torch.arange(CANVAS_PX)
    weights = (-((place[:, None] - place) / sigma).square() / 2).exp()
    weights[weights < 1e-6] = 0  # denormal numbers make the product ten times slower
    weights /= weights.sum(1, keepdim=True)
    return weights @ pictures @ weights.T


def resampled(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Down to 40..88 px and back."""
    small = F.interpolate(pictures, (randint(40, 88, generator),) * 2, mode="bilinear", antialias=True)
    return F.interpolate(small, pictures.shape[-2:], mode="bicubic")


def cosines() -> torch.Tensor:
    """The orthonormal 8-point DCT matrix."""
    k, x = torch.arange(8.0)[:, None], torch.arange(8.0)
    return torch.cos((2 * x + 1) * k * torch.pi / 16) * torch.where(k == 0, 0.125, 0.25).sqrt()


def jpeg_like(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """8x8 DCT coefficients rounded, the finer ones more coarsely."""
    n, c, h, w = pictures.shape
    dct, order = cosines(), torch.arange(8.0)
    step = float(uniform(0.02, 0.12, (), generator)) * (1 + 0.5 * (order[:, None] + order))
    blocks = pictures.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    coefficients = ((dct @ blocks @ dct.T) / step).round() * step
    return (dct.T @ coefficients @ dct).transpose(3, 4).reshape(n, c, h, w)


def noisy(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """White noise, or grain of some pixels, of up to 0.07."""
    cells = CANVAS_PX // randint(1, 4, generator)
    grain = torch.randn(len(pictures), 3, cells, cells, generator=generator)
    grain = F.interpolate(grain, pictures.shape[-2:], mode="bilinear")
    return pictures + grain * uniform(0, 0.07, (len(pictures), 1, 1, 1), generator)


def softened(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each fault happens to some of the pictures, and to those in different measure."""
    for fault in (tinted, blurred, resampled, noisy, jpeg_like):
        share = uniform(-0.6, 1, (len(pictures),), generator).clamp(min=0)
        hit = share.nonzero()[:, 0]
        changed = torch.lerp(pictures[hit], fault(pictures[hit], generator), share[hit].view(-1, 1, 1, 1))
        pictures = pictures.index_copy(0, hit, changed.clamp(0, 1))
    return pictures


# Training -------------------------------------------------------------------------------------------------------

class Batches:
    """Draws augmented examples, half of them from the pool."""

    def __init__(self, pool: Examples, batch: int, device: str) -> None:
        self.pool, self.batch, self.device = pool, batch, device

    def draw(self, generator: torch.Generator) -> Examples:
        decoded = self.pool.at(torch.randint(len(self.pool.style), (self.batch // 2,), generator=generator))
        fresh = mixture(self.batch - self.batch // 2, generator)
        both = joined(decoded.seen_as(decoded.pictures.float() / 255), fresh)
        return both.seen_as(softened(moved(both.pictures, generator), generator))

    def loss(self, judge: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy: of every object's presence, of the style where there are objects, of the ground."""
        with torch.autocast(self.device, enabled=False):
            wanted = Examples(*(part.to(self.device) for part in self.draw(generator)))
        objects, style, background = (logits.float() for logits in judge(wanted.pictures))
        presence = F.binary_cross_entropy_with_logits(objects, wanted.objects.float(), reduction="none")
        return (presence.sum(1).mean() + F.cross_entropy(style, wanted.style, ignore_index=IGNORED)
                + F.cross_entropy(background, wanted.background))


def start_from(judge: Judge, path: Path) -> None:
    """Take the body of an older judge; its heads may have answered other questions."""
    old = {name: value.float() for name, value in load_file(path).items() if name.startswith("body.")}
    judge.body.load_state_dict({name.removeprefix("body."): value for name, value in old.items()})


# The report -----------------------------------------------------------------------------------------------------

def rendered_exam() -> dict[str, Examples]:
    """{name: examples}, none of which training saw."""
    generator = torch.Generator().manual_seed(-1)
    scenes = [random_scene(generator) for _ in range(1000)]
    clean = labelled(random_pictures(scenes, generator), scenes)
    nothing, partly = ruined(600, 0, generator), ruined(400, 1, generator)
    return {"clean": clean, "softened": clean.seen_as(softened(clean.pictures, generator)), "ruined": nothing,
            "ruined, softened": nothing.seen_as(softened(nothing.pictures, generator)), "one of two ruined": partly,
            "ruined in an unknown way": ruined(200, 0, generator, (melted,))}


def decoded_exam(exam: dict[str, Examples], decode: Decode) -> dict[str, Examples]:
    """A part of `exam` through the VAE, with the noise that a good UNet leaves."""
    generator, noise = torch.Generator().manual_seed(-2), torch.full((1, 1, 1, 1), 0.05)

    def some(name: str, n: int) -> Examples:
        part = exam[name].at(torch.arange(n))
        return part.seen_as(decode(part.pictures, generator, noise))
    return {"decoded": some("clean", 500), "ruined, decoded": some("ruined", 150),
            "one of two ruined, decoded": some("one of two ruined", 100), "drowned": drowned(100, decode, generator)}


def load_exam(path: Path, decode: Decode) -> dict[str, Examples]:
    """Both exams; what went through the VAE is kept at `path`."""
    exam = rendered_exam()
    if not path.exists():
        print("drawing the exam", flush=True)
        made = decoded_exam(exam, decode)
        save_atomically({f"{name}.{field}": value for name, part in made.items()
                         for field, value in part._asdict().items()}, path)
    kept = load_file(path)
    exam |= {name: Examples(*(kept[f"{name}.{field}"] for field in Examples._fields))
             for name in dict.fromkeys(key.rpartition(".")[0] for key in kept)}
    soft = softened(exam["decoded"].pictures, torch.Generator().manual_seed(-3))
    return exam | {"decoded, softened": exam["decoded"].seen_as(soft)}


def rights_by_threshold(judge: Judge, tuning: Examples) -> dict[float, float]:
    """{probability from which an object is called present: share of pictures with all objects right}."""
    pictures = softened(tuning.pictures.float() / 255, torch.Generator().manual_seed(-4))
    said = judge.verdict(pictures).object_probability
    return {cut / 20: share(((said >= cut / 20) == tuning.objects).all(1)) for cut in range(4, 17)}


def mistakes(wanted: torch.Tensor, said: torch.Tensor) -> Counter[str]:
    """What was said instead of what, over bool [n, 24]; "-" stands for nothing."""
    pairs = Counter()
    for row in (wanted != said).any(1).nonzero()[:, 0].tolist():
        missed, extra = (side.nonzero()[:, 0].tolist() or [None] for side in
                         (wanted[row] & ~said[row], said[row] & ~wanted[row]))
        pairs.update(" -> ".join("-" if i is None else OBJECTS[i] for i in (a, b)) for a in missed for b in extra)
    return pairs


def confusions(wanted: torch.Tensor, said: torch.Tensor, names: tuple[str, ...]) -> Counter[str]:
    return Counter(f"{names[a]} -> {names[b]}" for a, b in torch.stack([wanted, said], 1).tolist() if a != b)


def share(right: torch.Tensor) -> float | None:
    """How many of bool [n] are true; None where there are none to tell."""
    return float(right.float().mean()) if len(right) else None


def marks(judge: Judge, exam: Examples) -> dict[str, int | float | dict[str, int] | None]:
    """Shares of the pictures: all objects right, some missed, some said that are not there; style and ground right."""
    verdict, there = judge.verdict(exam.pictures), exam.objects.any(1)
    shares = {"objects": (verdict.objects == exam.objects).all(1), "missed": (exam.objects & ~verdict.objects).any(1),
              "false_alarms": (verdict.objects & ~exam.objects).any(1),
              "style": (verdict.style == exam.style)[there], "background": verdict.background == exam.background}
    wrong = {"objects": mistakes(exam.objects, verdict.objects),
             "style": confusions(exam.style[there], verdict.style[there], STYLES),
             "background": confusions(exam.background, verdict.background, BACKGROUNDS)}
    return {"pictures": len(there), **{name: share(right) for name, right in shares.items()},
            **{f"{name}_confused": dict(pairs.most_common(8)) for name, pairs in wrong.items()}}


def report_on(judge: Judge, exams: dict[str, Examples]) -> dict[str, dict]:
    """The marks of every exam, printed as a table with the worst confusions below."""
    report = {name: marks(judge, exam) for name, exam in exams.items()}
    columns = ("pictures", "objects", "missed", "false_alarms", "style", "background")
    print(f"{f'at {PRESENT:.2f}':28}" + "".join(f"{column:>14}" for column in columns))
    for name, row in report.items():
        cells = ("-" if row[column] is None else f"{row[column]:.2%}" for column in columns[1:])
        print(f"{name:28}{row['pictures']:14}" + "".join(f"{cell:>14}" for cell in cells))
    for name, row in report.items():
        print(f"{name}: " + "; ".join(", ".join(f"{pair} {n}" for pair, n in row[f"{kind}_confused"].items()) or "none"
                                      for kind in ("objects", "style", "background")), flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for judge.safetensors and its report")
    parser.add_argument("--work", type=Path, help="folder for the pool and checkpoints (default: OUT/judge-run)")
    parser.add_argument("--vae", type=Path, required=True, help="vae.safetensors: half of the pictures go through it")
    parser.add_argument("--init", type=Path, help="a judge whose body to start from")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=1500, help="pictures through the VAE")
    parser.add_argument("--report-every", type=int, default=500)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    work, decode = options.work or options.out / "judge-run", vae_decode(options.vae, options.device)
    config = TrainConfig(work, options.steps, lr=2e-3, ema=0.997, weight_decay=0.02)
    batches = Batches(load_pool(work / "pool.safetensors", options.pool, decode), options.batch, options.device)
    tuning = load_pool(work / "tuning.safetensors", options.pool // 2, decode, seed=-4)
    exams, judge = load_exam(work / "exam.safetensors", decode), Judge()
    if options.init:
        start_from(judge, options.init)
    run = Run(judge, config, options.device)

    def report(run: Run) -> None:
        path = options.out / "judge.safetensors"
        save_atomically({name: value.half() for name, value in run.averaged().state_dict().items()}, path)
        run.swap_back()
        judge = load_judge(path)
        rights = rights_by_threshold(judge, tuning)
        print("objects right by threshold:", "  ".join(f"{cut:.2f} {right:.2%}" for cut, right in rights.items()))
        path.with_suffix(".json").write_text(json.dumps(report_on(judge, exams), indent=1))
    if run.step == options.steps:
        report(run)
    run.train(batches.loss, report, options.report_every)


if __name__ == "__main__":
    main()

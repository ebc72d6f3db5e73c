"""Train the judge on drawings as a diffusion model would return them: shifted, softened, out of a VAE, or ruined.

    python -m benchmarks.minicanvas.train_judge --out benchmarks/minicanvas/weights \
        --vae benchmarks/minicanvas/weights/vae.safetensors

Without --vae (the only part that needs ComfyUI) the judge learns from clean renders alone.
"""
import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .canvas import CANVAS_PX, all_labels, drawings_cached, place, random_pictures
from .harness import Run, TrainConfig, save_atomically
from .icons import OBJECTS, STYLES
from .judge import NONE, OBJECT_NAMES, Judge, load_judge

SCALES = (0.5, 1.0)          # a little wider than canvas.SCALES
LATENT_NOISE = 0.15          # at most, of a latent's spread
STATIC_NOISE = (1.5, 3.0)    # of a latent's spread: what it decodes to is no drawing any more
NONE_SHARE = 0.16            # of a batch
IGNORED = -100               # the style of a picture that shows nothing

Ruin = Callable[[torch.Generator], torch.Tensor]
Decode = Callable[[torch.Tensor, torch.Generator, float | torch.Tensor], torch.Tensor]


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def randint(low: int, high: int, generator: torch.Generator) -> int:
    """One whole number in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


# Pictures that show nothing -------------------------------------------------------------------------------------

def spot(generator: torch.Generator) -> tuple[int, int, int]:
    """A random (size, left, top) for a drawing."""
    size = randint(*(round(scale * CANVAS_PX) for scale in SCALES), generator)
    return size, *(randint(0, CANVAS_PX - size, generator) for _ in range(2))


def two_drawings(at: tuple[int, int, int], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two different objects, each in any style, at the same place: two pictures [3, h, w]."""
    objects = torch.randperm(len(OBJECTS), generator=generator)[:2].tolist()
    icons = drawings_cached()
    first, second = (place(icons[randint(0, len(STYLES) - 1, generator), obj], *at) for obj in objects)
    return first, second


def smooth(channels: int, cells: int, generator: torch.Generator) -> torch.Tensor:
    """A random field [channels, h, w] of about `cells` bumps a side, in -1..1 mostly."""
    field = torch.randn(1, channels, cells, cells, generator=generator)
    return F.interpolate(field, (CANVAS_PX, CANVAS_PX), mode="bicubic", align_corners=True)[0]


def blank(generator: torch.Generator) -> torch.Tensor:
    """Paper, not quite white or even."""
    tint = uniform(-0.06, 0.06, (3, 1, 1), generator) + 0.04 * smooth(3, randint(2, 12, generator), generator)
    return (1 + tint * torch.rand((), generator=generator)).clamp(0, 1)


def blob(generator: torch.Generator) -> torch.Tensor:
    """Patches of smooth colour with a soft or a hard edge."""
    line = torch.linspace(-1, 1, CANVAS_PX)
    centre = uniform(-0.3, 0.3, (2,), generator)
    radius = ((line[:, None] - centre[0]).square() + (line - centre[1]).square()).sqrt()
    shape = smooth(1, randint(3, 9, generator), generator) + float(uniform(0.5, 3, (), generator)) - 3 * radius
    mask = (shape * uniform(1, 15, (), generator)).sigmoid()
    colour = torch.rand(3, 1, 1, generator=generator)
    tones = uniform(0, 0.5, (), generator) * smooth(3, randint(2, 16, generator), generator)
    return 1 - mask * (1 - (colour + tones).clamp(0, 1))


def blend(generator: torch.Generator) -> torch.Tensor:
    """Two objects shining through each other."""
    first, second = two_drawings(spot(generator), generator)
    return torch.lerp(first, second, float(uniform(0.35, 0.65, (), generator)))


def halves(generator: torch.Generator) -> torch.Tensor:
    """Half of one object, half of another, joined near the middle."""
    at = size, left, top = spot(generator)
    first, second = two_drawings(at, generator)
    vertical = randint(0, 1, generator)
    cut = (top, left)[vertical] + round(size * float(uniform(0.42, 0.58, (), generator)))
    line = torch.arange(CANVAS_PX) < cut
    return torch.where(line if vertical else line[:, None], first, second)


def shuffled(generator: torch.Generator) -> torch.Tensor:
    """An object cut into squares, most of which change place."""
    picture, _ = two_drawings(spot(generator), generator)
    n = (3, 4, 6)[randint(0, 2, generator)]
    side = CANVAS_PX // n
    squares = picture.view(3, n, side, n, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    squares = squares[torch.randperm(n * n, generator=generator)]
    return squares.view(n, n, 3, side, side).permute(2, 0, 3, 1, 4).reshape(3, CANVAS_PX, CANVAS_PX)


def fragment(generator: torch.Generator) -> torch.Tensor:
    """A small piece of an object, the rest paper."""
    size, left, top = at = spot(generator)
    picture, _ = two_drawings(at, generator)
    piece = round(size * float(uniform(0.2, 0.4, (), generator)))
    x, y = (corner + randint(0, size - piece, generator) for corner in (left, top))
    paper = torch.ones_like(picture)
    paper[:, y:y + piece, x:x + piece] = picture[:, y:y + piece, x:x + piece]
    return paper


def melted(generator: torch.Generator) -> torch.Tensor:
    """An object pulled out of shape. Kept out of training, to see what the judge makes of an unknown fault."""
    picture, _ = two_drawings(spot(generator), generator)
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, CANVAS_PX, CANVAS_PX], align_corners=False)
    pull = smooth(2, randint(5, 9, generator), generator).permute(1, 2, 0)
    pull = pull * float(uniform(0.2, 0.35, (), generator))
    return 1 - F.grid_sample(1 - picture[None], grid + pull, align_corners=False)[0]


RUINS = (blank, blob, blend, halves, shuffled, fragment)


def ruins(n: int, generator: torch.Generator, kinds: tuple[Ruin, ...] = RUINS) -> torch.Tensor:
    """Pictures [n, 3, h, w] that show none of the objects, the kinds in turn."""
    return torch.stack([kinds[i % len(kinds)](generator) for i in range(n)])


# The pool -------------------------------------------------------------------------------------------------------

def vae_decode(path: Path, device: str) -> Decode:
    """decode(pictures, generator, noise): through the VAE, with noise of that size in the latents' spread."""
    from .models import new_vae
    vae = new_vae()
    vae.load_state_dict(load_file(path))
    vae.float().requires_grad_(False).to(device)

    def decode(pictures: torch.Tensor, generator: torch.Generator, noise: float | torch.Tensor) -> torch.Tensor:
        def through(batch: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            latent = vae.taesd_encoder(batch.to(device).contiguous(memory_format=torch.channels_last)).float()
            extra = torch.randn(latent.shape, generator=generator) * scale.view(-1, 1, 1, 1)
            return vae.taesd_decoder(latent + extra.to(device) * latent.std()).float().clamp(0, 1).cpu()
        scales = torch.as_tensor(noise).expand(len(pictures))
        with torch.autocast(device, dtype=torch.bfloat16):
            return torch.cat([through(*both) for both in zip(pictures.split(51), scales.split(51), strict=True)])
    return decode


def no_decode(pictures: torch.Tensor, generator: torch.Generator, noise: float | torch.Tensor) -> torch.Tensor:
    return pictures


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures * 255).round().byte()


def drawn_pool(copies: int, decode: Decode, generator: torch.Generator) -> torch.Tensor:
    """uint8 [copies, pictures, 3, h, w]: every drawing placed `copies` times, decoded every second time."""
    icons = drawings_cached().flatten(0, 1)

    def one(copy: int) -> torch.Tensor:
        pictures = torch.stack([place(icon, *spot(generator)) for icon in icons])
        noise = uniform(0, LATENT_NOISE, (len(pictures),), generator)
        return to_bytes(decode(pictures, generator, noise) if copy % 2 else pictures)
    return torch.stack([one(copy) for copy in range(copies)])


def ruined_pool(n: int, decode: Decode, generator: torch.Generator) -> torch.Tensor:
    """uint8 [n, 3, h, w]: ruins, half of them decoded, and drawings drowned in latent noise if there is a VAE."""
    plain, decoded = ruins(n // 2, generator), ruins(n - n // 2, generator)
    noise = uniform(0, LATENT_NOISE, (len(decoded),), generator)
    pools = [to_bytes(plain), to_bytes(decode(decoded, generator, noise))]
    if decode is not no_decode:
        drawn = random_pictures(all_labels(), generator)
        pools.append(to_bytes(decode(drawn, generator, uniform(*STATIC_NOISE, (len(drawn),), generator))))
    return torch.cat(pools)


def load_pool(folder: Path, copies: int, decode: Decode) -> tuple[torch.Tensor, torch.Tensor]:
    """(drawn, ruined), made once and kept in `folder`."""
    path = folder / "pool.safetensors"
    if not path.exists():
        print("drawing the pool", flush=True)
        generator = torch.Generator().manual_seed(1)
        pool = {"drawn": drawn_pool(copies, decode, generator),
                "ruined": ruined_pool(120 * copies, decode, generator)}
        folder.mkdir(parents=True, exist_ok=True)
        save_atomically(pool, path)
    pool = load_file(path)
    return pool["drawn"], pool["ruined"]


def centres(pictures: torch.Tensor) -> torch.Tensor:
    """Where the ink of each picture [n, 3, h, w] lies on average: x and y [n, 2] in -1..1."""
    ink, line = (1 - pictures).mean(1), torch.linspace(-1, 1, CANVAS_PX)
    mass = ink.sum((1, 2)).clamp(min=1e-3)
    return torch.stack([(ink.sum(1) * line).sum(1) / mass, (ink.sum(2) * line).sum(1) / mass], 1)


def mixed(first: torch.Tensor, second: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blends, or halves joined left to right or top to bottom, of two pictures with their ink in one place."""
    n, middle = len(first), centres(first)
    shift = torch.eye(2).expand(n, 2, 2), (centres(second) - middle)[:, :, None]
    grid = F.affine_grid(torch.cat(shift, 2), list(second.shape), align_corners=False)
    second = 1 - F.grid_sample(1 - second, grid, align_corners=False)
    x, y = (middle + uniform(-0.1, 0.1, (n, 2), generator)).view(n, 2, 1, 1, 1).unbind(1)
    line, kind = torch.linspace(-1, 1, CANVAS_PX), torch.randint(3, (n, 1, 1, 1), generator=generator)
    share = torch.where(kind == 0, (line < x).float(), (line[:, None] < y).float())
    share = torch.where(kind == 2, uniform(0.35, 0.65, (n, 1, 1, 1), generator), share)
    return torch.lerp(first, second, share)


# Augmentation: every function takes and returns pictures [n, 3, h, w] in 0..1 -----------------------------------

def moved(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to 7 px, zoom and stretch by up to 10 %, turn by up to 5 degrees; what comes in is paper."""
    n = len(pictures)
    angle = uniform(-0.09, 0.09, (n,), generator)
    zoom = uniform(0.92, 1.1, (n, 1, 1), generator) * uniform(0.97, 1.03, (n, 2, 1), generator)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    theta = torch.cat([turn * zoom, uniform(-0.15, 0.15, (n, 2, 1), generator)], 2)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return 1 - F.grid_sample(1 - pictures, grid, align_corners=False)


def tinted(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mild changes of each channel's contrast and level."""
    n = len(pictures)
    contrast = uniform(0.8, 1.15, (n, 1, 1, 1), generator) * uniform(0.93, 1.07, (n, 3, 1, 1), generator)
    return 1 - contrast * (1 - pictures) - uniform(-0.03, 0.05, (n, 1, 1, 1), generator)


def blurred(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A Gaussian blur of 0.4 to 1.8 px, as one matrix for rows and columns; beyond the border is paper."""
    sigma = float(uniform(0.4, 1.8, (), generator))
    place = torch.arange(CANVAS_PX)
    weights = (-((place[:, None] - place) / sigma).square() / 2).exp() / (sigma * (2 * torch.pi) ** 0.5)
    weights[weights < 1e-6] = 0  # denormal numbers make the product ten times slower
    return 1 - weights @ (1 - pictures) @ weights


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
    blocks = pictures.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
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
        share = uniform(-0.6, 1, (len(pictures), 1, 1, 1), generator).clamp(min=0)
        pictures = torch.lerp(pictures, fault(pictures, generator), share).clamp(0, 1)
    return pictures


# Training and report --------------------------------------------------------------------------------------------

class Batches:
    """Draws (pictures, object, style) from the pools, augmented."""

    def __init__(self, drawn: torch.Tensor, ruined: torch.Tensor, batch: int, device: str) -> None:
        self.drawn, self.ruined, self.device = drawn, ruined, device
        self.ruins = round(batch * NONE_SHARE)
        self.drawings = batch - self.ruins

    def drawings_of(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One placement, any, of each label [n]: [n, 3, h, w] in 0..1."""
        return self.drawn[torch.randint(len(self.drawn), labels.shape, generator=generator), labels].float() / 255

    def ruined_ones(self, generator: torch.Generator) -> torch.Tensor:
        """Half of them mixed afresh from two objects in any styles, half from the pool."""
        mixes, objects = self.ruins // 2, len(OBJECTS)
        first = torch.randint(objects, (mixes,), generator=generator)
        second = (first + torch.randint(1, objects, (mixes,), generator=generator)) % objects
        styles = torch.randint(len(STYLES), (2, mixes), generator=generator) * objects
        pair = (self.drawings_of(labels, generator) for labels in styles + torch.stack([first, second]))
        others = torch.randint(len(self.ruined), (self.ruins - mixes,), generator=generator)
        return torch.cat([mixed(*pair, generator), self.ruined[others].float() / 255])

    def draw(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        labels = torch.randint(self.drawn.shape[1], (self.drawings,), generator=generator)
        pictures = torch.cat([self.drawings_of(labels, generator), self.ruined_ones(generator)])
        objects, styles = (F.pad(part, (0, self.ruins), value=fill) for part, fill in
                           ((labels % len(OBJECTS), NONE), (labels // len(OBJECTS), IGNORED)))
        return softened(moved(pictures, generator), generator), objects, styles

    def loss(self, judge: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy of both heads."""
        with torch.autocast(self.device, enabled=False):
            pictures, objects, styles = (part.to(self.device) for part in self.draw(generator))
        object_logits, style_logits = judge(pictures)
        return F.cross_entropy(object_logits.float(), objects) + F.cross_entropy(style_logits.float(), styles)


def held_out(decode: Decode, copies: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{name: (pictures, labels)}: placements no training saw; label len(STYLES) * len(OBJECTS) is a ruin."""
    generator = torch.Generator().manual_seed(-1)
    labels = all_labels().repeat(copies)
    clean = random_pictures(labels, generator)
    bad, odd = ruins(60 * copies, generator), ruins(20 * copies, generator, (melted,))
    nothing = torch.full((len(bad),), len(all_labels()))
    sets = {"clean": (clean, labels), "softened": (softened(clean, generator), labels), "none": (bad, nothing),
            "none, of an unknown kind": (odd, nothing[:len(odd)])}
    if decode is not no_decode:
        decoded = decode(clean, generator, 0.05)
        sets |= {"decoded": (decoded, labels), "decoded and softened": (softened(decoded, generator), labels),
                 "none, decoded": (decode(bad, generator, 0.05), nothing)}
    return sets


def confusions(wanted: torch.Tensor, said: torch.Tensor, names: tuple[str, ...], worst: int = 8) -> str:
    """The most frequent mistakes, as "cat -> dog 3"."""
    pairs, counts = torch.stack([wanted, said])[:, wanted != said].unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True)[:worst].tolist()
    return ", ".join(f"{names[pairs[0, i]]} -> {names[pairs[1, i]]} {int(counts[i])}" for i in order) or "none"


def report_set(judge: Judge, name: str, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    """Print both heads' accuracy, how sure the judge was on average, and the worst confusions."""
    verdict = judge.verdict(pictures)
    ruin = labels == len(all_labels())
    objects, styles = torch.where(ruin, NONE, labels % len(OBJECTS)), labels // len(OBJECTS)
    line = f"{name}: object {(verdict.object == objects).float().mean():.2%} of {len(labels)}"
    if not ruin.any():
        line += f", style {(verdict.style == styles).float().mean():.2%}"
    print(f"{line}, mean object probability {verdict.object_probability.mean():.2%}")
    print(f"    objects confused: {confusions(objects, verdict.object, OBJECT_NAMES)}")
    if not ruin.any():
        print(f"    styles confused: {confusions(styles, verdict.style, STYLES)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for judge.safetensors")
    parser.add_argument("--work", type=Path, help="folder for the pool and checkpoints (default: OUT/judge-run)")
    parser.add_argument("--vae", type=Path, help="vae.safetensors: half of the pictures go through it")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--copies", type=int, default=16, help="placements of each drawing in the pool")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    work = options.work or options.out / "judge-run"
    decode = vae_decode(options.vae, options.device) if options.vae else no_decode
    batches = Batches(*load_pool(work, options.copies, decode), options.batch, options.device)
    run = Run(Judge(), TrainConfig(work, options.steps, lr=2e-3, ema=0.997, weight_decay=0.02), options.device)
    exam = held_out(decode, copies=10)

    def report(run: Run) -> None:
        state = {name: value.half() for name, value in run.averaged().state_dict().items()}
        save_atomically(state, options.out / "judge.safetensors")
        run.swap_back()
        judge = load_judge(options.out / "judge.safetensors")
        for name, (pictures, labels) in exam.items():
            report_set(judge, name, pictures, labels)
    if run.step == options.steps:
        report(run)
    run.train(batches.loss, report, report_every=options.steps)


if __name__ == "__main__":
    main()

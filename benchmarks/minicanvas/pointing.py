"""Where is it? *SAEmnesia Concept Map* on drawn scenes, of which we know where each object lies, beside DAAM.

    python -m benchmarks.minicanvas.pointing                     the objects of the concept file that comes along
    python -m benchmarks.minicanvas.pointing --sae FILE FILE     those of other files

The scenes are drawn (what the model paints nobody has marked), encoded, and looked at with their prompt by the node's
own code: the highest point of the map lies on the object or not; the mask is compared with the object's outline, holes
filled. DAAM (arXiv 2210.04885) looks in the same calls: attention to the word's tokens, averaged over heads and
cross-attentions. Also the mean of the maps at three noise levels, which is what watching a run would give. `make
bench-pointing`; writes results/pointing.json and pointing.png.
"""
import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes
from torch.nn import functional

from sae_models.storage import write_json
from tools.comfy_host import COMFY

from . import models  # noqa: F401  (puts ComfyUI on the path)
from .canvas import CANVAS_PX, Scene, Spot, drawings, picture, random_scene, random_spots
from .checkpoint import NAME
from .icons import OBJECTS
from .text import TEMPLATES, prompt

RESULTS = Path(__file__).parents[1] / "results"
AT, RUN = 0.95, (0.4, 0.7, 0.95)
"""How far in sampling is looked, as the node has it, and the looks that stand for a run that is watched."""
THRESHOLD, THRESHOLDS = 0.5, torch.arange(0.2, 0.85, 0.05).tolist()
BATCH, SHOWN = 20, 12
END = 49407


class Example(NamedTuple):
    """A drawn scene, one of its objects, where that is (bool [px, px]), and the prompt."""
    picture: torch.Tensor
    word: str
    where: torch.Tensor
    text: str
    objects: int


def outline(scene: Scene, which: int, spot: Spot) -> torch.Tensor:
    """Where one object of a scene lies, bool [px, px], with the holes of line drawings filled."""
    alpha = torch.zeros(CANVAS_PX, CANVAS_PX)
    icon = drawings()[scene.style, scene.objects[which], 3:][None]
    small = functional.interpolate(icon, (spot.size, spot.size), mode="bilinear", antialias=True)[0, 0]
    alpha[spot.top:spot.top + spot.size, spot.left:spot.left + spot.size] = small
    return torch.from_numpy(binary_fill_holes((alpha > 0.5).numpy()))


def example(word: str, generator: torch.Generator) -> Example:
    """A scene with an object, in any style and on any ground, alone or beside another, in any order of words."""
    index, scene = OBJECTS.index(word), random_scene(generator)
    while len(scene.objects) > 1 and index in scene.objects:
        scene = random_scene(generator)
    which = int(torch.randint(len(scene.objects), (), generator=generator))
    objects = tuple(index if i == which else other for i, other in enumerate(scene.objects))
    scene, spots = scene._replace(objects=objects), random_spots(len(objects), generator)
    said = tuple(objects[i] for i in torch.randperm(len(objects), generator=generator).tolist())
    template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=generator))]
    return Example(picture(scene, spots), word, outline(scene, which, spots[which]),
                   prompt(scene._replace(objects=said), template), len(objects))


class Looker:
    """MiniCanvas, and the node's code that looks at pictures with it."""

    def __init__(self) -> None:
        import comfy.sd
        sys.path.insert(0, str(COMFY / "custom_nodes"))
        self.node, self.maps, self.adapter = (importlib.import_module(f"comfyui-saemnesia.{name}") for name in
                                              ("nodes.concept_map", "sae_models.concept_map", "sae_models.adapter"))
        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(
            str(COMFY / "models" / "checkpoints" / NAME))

    def tokens(self, text: str) -> list[int]:
        return [token for token, _ in self.clip.tokenize(text)["l"][0]]

    def places_of(self, one: Example) -> list[int]:
        """Which tokens of the prompt are the word."""
        text, word = self.tokens(one.text), self.tokens(one.word)
        word = word[1:word.index(END)]
        return next([*range(i, i + len(word))] for i in range(len(text)) if text[i:i + len(word)] == word)

    def look(self, sae: Any, examples: Sequence[Example], at: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(the node's maps of the file's concepts [C, n, h, w], DAAM's of each example's word [n, h, w])"""
        texts, pictures = [one.text for one in examples], torch.stack([one.picture for one in examples])
        encoded = [self.clip.encode_from_tokens(self.clip.tokenize(text)) for text in texts]
        latents = self.vae.encode(pictures.movedim(1, -1))
        names = self.maps.names_of(sae, "")
        with self.attending([self.places_of(one) for one in examples], latents.shape[2:]) as seen:
            maps = self.node.look(self.model, [[torch.cat(encoded), {}]], latents, sae, names, at)
        return maps, torch.stack(seen).mean(0)

    @contextmanager
    def attending(self, words: Sequence[Sequence[int]], size: Sequence[int]) -> Iterator[list[torch.Tensor]]:
        """Collects DAAM's map [n, h, w] of every cross-attention while the block lasts."""
        seen: list[torch.Tensor] = []

        def hook(module: Any, inputs: tuple, options: dict, output: torch.Tensor) -> None:
            x, context = inputs[0], options.get("context", inputs[1] if len(inputs) > 1 else None)
            q, k = (y.unflatten(2, (module.heads, -1)).transpose(1, 2) for y in (module.to_q(x), module.to_k(context)))
            share = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)
            own = torch.stack([share[i, :, word].mean(-1) for i, word in enumerate(words)])
            rectangle = self.maps.grid(own.shape[1], *size)
            seen.append(self.maps.resized(own.unflatten(1, rectangle), *size))
        unet = self.model.model.diffusion_model
        hooks = [module.register_forward_hook(hook, with_kwargs=True) for name, module in unet.named_modules()
                 if name.endswith("attn2")]
        try:
            yield seen
        finally:
            for one in hooks:
                one.remove()


def figures(maps: torch.Tensor, examples: Sequence[Example]) -> dict[str, float]:
    """Pointing accuracy and IoU in per cent of maps at the picture's size [n, px, px]."""
    where = torch.stack([one.where for one in examples]).flatten(1)
    flat = maps.flatten(1)
    peak = flat.amax(1, keepdim=True)
    on = where.gather(1, flat.argmax(1, keepdim=True))[:, 0].float()
    pair = torch.tensor([one.objects > 1 for one in examples])

    def iou(threshold: float) -> float:
        mask = flat >= threshold * peak.clamp_min(1e-9)
        return 100 * float(((mask & where).sum(1) / (mask | where).sum(1)).mean())
    best = max(THRESHOLDS, key=iou)
    return {"pictures": len(examples), "pointing": 100 * float(on.mean()),
            "pointing, alone": 100 * float(on[~pair].mean()), "pointing, of two": 100 * float(on[pair].mean()),
            "IoU": iou(THRESHOLD), "IoU at its best threshold": iou(best), "best threshold": round(best, 2)}


def heard(maps: torch.Tensor, names: Sequence[str], examples: Sequence[Example], least: float) -> dict[str, float]:
    """How often, in per cent, the objects that a prompt says are heard, and those it does not."""
    objects = [i for i, name in enumerate(names) if name in OBJECTS]
    peaks = maps[objects].flatten(2).amax(2) >= least
    said = torch.tensor([[names[i] in one.text.replace(",", " ").split() for one in examples] for i in objects])
    return {"said and heard": 100 * float(peaks[said].float().mean()),
            "not said but heard": 100 * float(peaks[~said].float().mean())}


def sheet(looker: Looker, examples: Sequence[Example], ours: torch.Tensor, daam: torch.Tensor) -> Image.Image:
    """Rows: the pictures, the node's heat maps, its masks laid over them, DAAM's heat maps."""
    pictures = torch.stack([one.picture for one in examples]).movedim(1, -1)
    shares = [maps / maps.amax((1, 2), keepdim=True) for maps in (ours, daam)]
    mask = (shares[0] >= THRESHOLD).float()[..., None]
    rows = [pictures, looker.maps.heat(pictures, shares[0]), pictures * (0.25 + 0.75 * mask),
            looker.maps.heat(pictures, shares[1])]
    strips = [torch.cat(list(row), 1) for row in rows]
    page = (255 * torch.cat(strips)).round().byte().numpy()
    return Image.fromarray(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sae", type=Path, nargs="+", default=[COMFY / "models" / "sae" / NAME])
    parser.add_argument("--scenes", type=int, default=40, help="of each object")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "pointing.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    looker, generator = Looker(), torch.Generator().manual_seed(options.seed)
    examples: list[Example] = []
    found: dict[str, list[torch.Tensor]] = {}
    ears = []
    for path in options.sae:
        sae = looker.adapter.LoadedSae.read(path.name, path)
        names = looker.maps.names_of(sae, "")
        for word in [name for name in names if name in OBJECTS]:
            for _ in range(0, options.scenes, BATCH):
                part = [example(word, generator) for _ in range(BATCH)]
                looks = {}
                with torch.inference_mode():
                    for at in RUN:
                        maps, daam = looker.look(sae, part, at)
                        looks[f"ours at {at:g}"], looks[f"DAAM at {at:g}"] = maps[names.index(word)], daam
                        if at == AT:
                            ears.append((maps, names, part))
                for who in ("ours", "DAAM"):
                    looks[f"{who}, a run"] = torch.stack([looks[f"{who} at {at:g}"] for at in RUN]).mean(0)
                for who, one in looks.items():
                    found.setdefault(who, []).append(looker.maps.resized(one, CANVAS_PX, CANVAS_PX))
                examples += part
                print(word, {who: round(figures(found[who][-1], part)["pointing"]) for who in found}, flush=True)
    large = {who: torch.cat(parts) for who, parts in found.items()}
    rows = {who: {name: round(value, 2) for name, value in figures(maps, examples).items()}
            for who, maps in large.items()}
    words = sorted({one.word for one in examples}, key=OBJECTS.index)
    by_word = {word: {key: round(value, 1) for key, value in figures(
        torch.stack([m for m, one in zip(large[f"ours at {AT:g}"], examples, strict=True) if one.word == word]),
        [one for one in examples if one.word == word]).items()} for word in words}
    ear = [heard(*one, looker.maps.HEARD) for one in ears]
    ear = {key: round(sum(one[key] for one in ear) / len(ear), 2) for key in ear[0]}
    for who, row in rows.items():
        print(f"{who:14}", row)
    print(ear)
    write_json(options.out, {"scenes": len(examples), "maps": rows, f"ours at {AT:g}, by object": by_word,
                             "heard": ear})
    some = range(0, len(examples), max(1, len(examples) // SHOWN))
    sheet(looker, [examples[i] for i in some], *(large[f"{who} at {AT:g}"][[*some]] for who in ("ours", "DAAM"))).save(
        options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

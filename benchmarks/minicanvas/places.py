"""Where to erase: how much of a concept goes and how much else with it, by the places that get neurons and how many.

    python -m benchmarks.minicanvas.places

For each of some concepts, rows by least squares at a block's output (the papers' place, each block tried), at all
blocks' outputs and at all cross-attentions' outputs, with 1 or 4 neurons, from the same pictures; then, on prompts and
seeds that were not learned from, *removed* and *touched* beside what the judge sees in pictures of those prompts, with
the erasure at several strengths. Also the rank correlation of *removed* with what the judge sees. In one process, with
the very code of *SAEmnesia Find Concept* and *Erase*; concepts that are done are kept, so a run that was stopped goes
on.
"""
import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sae_models.storage import write_json
from tools.comfy_host import COMFY

from . import models  # noqa: F401  (puts ComfyUI on the path)
from .canvas import CANVAS_PX
from .checkpoint import NAME
from .find import CONCEPTS as CONCEPTS_TXT
from .find import RESULTS, TEMPLATES
from .judge import load_judge
from .paint import CFG, STEPS
from .table import Task, rank_correlation, rights, shown, task_of

CONCEPTS = ("cat", "frog", "castle", "rose", "noto style", "contrast style", "blue ground")
NEURONS = (1, 4)
STRENGTHS = (0.25, 0.5, 1.0, 1.5)
SUBJECTS = CONCEPTS_TXT.read_text("utf-8").splitlines()


def line_of(concept: str) -> str:
    return next(line for line in SUBJECTS if line.startswith(f"{concept} ("))


def extension() -> SimpleNamespace:
    """The extension's modules as the host loads them."""
    sys.path.insert(0, str(COMFY / "custom_nodes"))
    names = ("nodes.patch", "nodes.painting", "sae_models.table", "sae_models.adapter", "sae_models.erasure",
             "sae_models.formats", "sae_models.hookpoint", "sae_models.sae", "sae_models.learning.effects",
             "sae_models.learning.lesson", "sae_models.learning.prompts", "sae_models.learning.search")
    return SimpleNamespace(**{name.split(".")[-1]: importlib.import_module(f"comfyui-saemnesia.{name}")
                              for name in names})


@dataclass(frozen=True)
class Row:
    """One way to erase one concept; shares. UA, kept: of the judge, over pictures that say it, and those of them that
    say other things of its kind too."""
    concept: str
    places: str
    neurons: int
    strength: float
    removed: float
    touched: float
    UA: float
    kept: float


class Studio:
    """A loaded model to learn from, to paint with and to measure on."""

    def __init__(self, checkpoint: Path, pictures: int, at_once: int) -> None:
        import comfy.sd
        self.host, self.pictures = extension(), pictures
        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
        self.painting = self.host.painting.Painting(CANVAS_PX, CANVAS_PX, STEPS, CFG, batch=at_once)
        self.judge = load_judge()

    def headers(self) -> dict[str, list[Any]]:
        """{which places: a header for each}: every block alone, all blocks, all cross-attentions."""
        host, unet = self.host, self.model.model.diffusion_model
        family = type(self.model.model.model_config).__name__.lower()

        def header(name: str) -> Any:
            width = host.hookpoint.width(host.hookpoint.find(unet, name))
            return host.formats.Header(host.sae.SaeConfig(width, 1, 1), name, family)
        attentions = [header(name) for name in host.hookpoint.cross_attentions(unet)]
        blocks = [header(name) for name in dict.fromkeys(h.hookpoint.split(".transformer")[0] for h in attentions)]
        single = {f"block {h.hookpoint}": [h] for h in blocks}
        return single | {"all blocks": blocks, "all cross-attentions": attentions}

    def tables(self, concept: str) -> tuple[Any, dict[str, Any]]:
        """(what was searched for, {hookpoint: maps}) of one concept."""
        own = line_of(concept)
        others = "\n".join(line for line in SUBJECTS if line != own)
        what = self.host.lesson.search(own, others, TEMPLATES, (), self.painting, self.pictures)
        places = {h.hookpoint: h for of in self.headers().values() for h in of}
        painter = self.host.painting.Painter(self.model, self.clip, what.lesson.painting)
        maps = self.host.search._maps(painter, what, list(places.values()), len(what.wanted))
        return what, dict(zip(places, maps, strict=True))

    def paint(self, model: Any, of: Task, seed: int = 5) -> torch.Tensor:
        """The task's pictures [n, 3, px, px] in 0..1."""
        painter = self.host.painting.Painter(model, self.clip, self.painting)
        generator, parts = torch.Generator().manual_seed(seed), []
        for start in range(0, len(of.shots), 24):
            texts = [shot.text for shot in of.shots[start:start + 24]]
            parts.append(self.vae.decode(painter.paint(texts, generator, ())))
        return torch.cat(parts).permute(0, 3, 1, 2).float()

    def erased(self, path: Path, concept: str, strength: float, actuator: str = "ablate") -> Any:
        """A clone of the model with the concept of a file erased."""
        host = self.host
        sae = host.adapter.LoadedSae(path.name, path, host.formats.read_headers(path))
        edits = host.adapter.build_edits(sae, f"{concept}:{strength:g}", host.erasure.Actuator(actuator))
        return host.patch.erase(self.model, sae, edits)

    def seen(self, model: Any, of: Task) -> tuple[float, float]:
        """(UA, share of the pictures that show all that is to stay)."""
        verdict = self.judge.verdict(self.paint(model, of))
        right = rights([shot.without(of.kind, of.erased) for shot in of.shots], verdict)
        kept = torch.stack(list(right.values())).all(0)
        alone = torch.tensor([of.kind == "object" and len(shot.scene.objects) == 1 for shot in of.shots])
        return float((~shown(of, verdict)).float().mean()), float(kept[~alone].float().mean())

    def effects(self, erased: Sequence[Any], what: Any) -> list[Any]:
        """*removed* and *touched* of some erasures, on held-out prompts."""
        painter = self.host.painting.Painter(self.model, self.clip, self.painting)
        erasers = {i: model.get_attachment(self.host.patch.KEY).erasures for i, model in enumerate(erased)}
        found = self.host.effects.effects(painter, erasers,
                                          *self.host.prompts.trial(0, what.lesson.held_out, what.lesson.prompts))
        return list(found.values())

    def rows(self, concept: str) -> Iterator[Row]:
        what, maps = self.tables(concept)
        of = task_of(concept, seed=3)
        of = replace(of, shots=tuple(shot for shot in of.shots if of.says(shot)))
        yield Row(concept, "no erasure", 0, 0.0, 0.0, 0.0, *self.seen(self.model, of))
        ways = list(self._ways(concept, what, maps))
        found = self.effects([model for *_, model in ways], what)
        for (*way, model), effect in zip(ways, found, strict=True):
            yield Row(concept, *way, effect.removed, effect.touched, *self.seen(model, of))

    def _ways(self, concept: str, what: Any, maps: dict[str, Any]) -> Iterator[tuple[str, int, float, Any]]:
        """(places, neurons a place, strength, the model with the concept erased so)."""
        for places, headers in self.headers().items():
            for n in NEURONS if len(headers) > 1 else NEURONS[:1]:
                weights = self.host.search.weights_of(len(headers))
                own = [self.host.search.finding.own_neurons(maps[h.hookpoint], what.wanted, weights, n)
                       for h in headers]
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "found.safetensors"
                    self.host.table.add(path, list(zip(headers, own, strict=True)))
                    for strength in STRENGTHS if places == "all cross-attentions" else (1.0,):
                        yield places, n, strength, self.erased(path, concept, -strength, "steer")


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """How *removed* ranks ways of erasing beside the judge: with all strengths, and without a push beyond 1."""
    erased = [row for row in rows if row.neurons]
    gentle = [row for row in erased if row.strength <= 1]
    return {name: round(rank_correlation([row.removed for row in of], [row.UA for row in of]), 3)
            for name, of in (("all", erased), ("no push", gentle))}


def done(path: Path, pictures: int) -> list[Row]:
    """The rows of concepts that an earlier run measured."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return [Row(**row) for row in kept["rows"]] if kept.get("pictures") == pictures else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--pictures", type=int, default=32, help="painted to learn a concept from")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--checkpoint", type=Path, default=COMFY / "models" / "checkpoints" / NAME)
    parser.add_argument("--out", type=Path, default=RESULTS / "places.json")
    options = parser.parse_args()
    rows = done(options.out, options.pictures)
    print(f"{'concept':16}{'places':42}{'n':>3}{'strength':>9}{'removed':>9}{'touched':>9}{'UA':>7}{'kept':>7}")
    with torch.inference_mode():
        studio = Studio(options.checkpoint, options.pictures, options.at_once)
        for concept in options.concepts:
            if all(row.concept != concept for row in rows):
                for row in studio.rows(concept):
                    rows.append(row)
                    print(f"{row.concept:16}{row.places:42}{row.neurons:3}{row.strength:9g}{row.removed:9.1%}"
                          f"{row.touched:9.2%}{row.UA:7.0%}{row.kept:7.0%}", flush=True)
                write_json(options.out, {"pictures": options.pictures, "rows": [asdict(row) for row in rows]}
                           | summary(rows))
    print("rank correlation of removed with UA:", summary(rows))


if __name__ == "__main__":
    main()

"""Pictures by a running ComfyUI that has SAEmnesia, and what the papers' benchmarks share: options, names, progress.

The graph has ComfyUI's own nodes and ours, so any ComfyUI with the extension installed paints it. Its pictures are
previews: they come here, and stay in its temporary folder too until it starts again.
"""
import argparse
import hashlib
import io
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from sae_models.errors import SaeError
from sae_models.storage import write_json
from tools.comfy_host import ComfyHost, ComfyServer, Graph, HostError

HOST = "http://127.0.0.1:8188"
FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth")
AT_ONCE = 8
"""Pictures in a graph: so many are painted anew when a run is stopped between them."""
DAY = 86_400.0


@dataclass(frozen=True)
class Shot:
    """A picture to paint."""
    text: str
    seed: int
    cfg: float
    width: int = 512
    height: int = 512


@dataclass(frozen=True)
class Way:
    """How all pictures of a run are painted: DDIM over evenly spaced timesteps, as diffusers has it.

    checkpoint: a file of models/checkpoints, or a folder of models/diffusers; strength: None where the actuator's own
    is meant; hookpoint: "" where the SAE's file says it.
    """
    checkpoint: str
    sae: str
    steps: int
    actuator: str = "ablate"
    strength: float | None = None
    hookpoint: str = ""

    def concepts(self, names: Sequence[str]) -> str:
        """The text of *SAEmnesia Erase* for some names of the file."""
        suffix = "" if self.strength is None else f":{self.strength:g}"
        return ", ".join(name.strip() + suffix for text in names for name in text.split(","))


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graph(way: Way, concepts: str, shots: Sequence[Shot]) -> Graph:
    """Paints the shots one by one, with these concepts erased; "" erases none."""
    file = way.checkpoint.endswith(FILES)
    built = {"checkpoint": node("CheckpointLoaderSimple", ckpt_name=way.checkpoint) if file else
             node("DiffusersLoader", model_path=way.checkpoint),
             "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text="")}
    if concepts:
        built["sae"] = node("SAEmnesiaLoadSAE", sae_name=way.sae, hookpoint=way.hookpoint)
        built["erase"] = node("SAEmnesiaErase", model=["checkpoint", 0], sae=["sae", 0], actuator=way.actuator,
                              start=0.0, end=1.0, apply_to="both", concepts=concepts)
    model = ["erase" if concepts else "checkpoint", 0]
    for i, shot in enumerate(shots):
        built |= {
            f"text {i}": node("CLIPTextEncode", clip=["checkpoint", 1], text=shot.text),
            f"latent {i}": node("EmptyLatentImage", width=shot.width, height=shot.height, batch_size=1),
            f"sampler {i}": node("KSampler", model=model, positive=[f"text {i}", 0], negative=["negative", 0],
                                 latent_image=[f"latent {i}", 0], seed=shot.seed, cfg=shot.cfg, steps=way.steps,
                                 sampler_name="ddim", scheduler="ddim_uniform", denoise=1.0),
            f"decode {i}": node("VAEDecode", samples=[f"sampler {i}", 0], vae=["checkpoint", 2]),
            f"preview {i}": node("PreviewImage", images=[f"decode {i}", 0]),
        }
    return built


def paint(host: ComfyServer, way: Way, concepts: str, shots: Sequence[Shot],
          progress: "Progress | None" = None) -> Iterator[Image.Image]:
    """The shots' pictures, one after the other. What is queued is taken back when it is stopped."""
    for start in range(0, len(shots), AT_ONCE):
        some = shots[start:start + AT_ONCE]
        prompt_id = host.submit(graph(way, concepts, some))
        try:
            pngs = host.wait(prompt_id, timeout=DAY).images
        except KeyboardInterrupt:
            host.post("/queue", {"delete": [prompt_id]})
            host.interrupt(prompt_id)
            raise
        yield from (Image.open(io.BytesIO(png)).convert("RGB") for png in pngs)
        if progress:
            progress.add(len(some), f"{concepts} erased" if concepts else "nothing erased")


# --- names ---------------------------------------------------------------------------------------------


def told(host: ComfyServer, way: Way) -> dict[str, Any]:
    """What the extension says of the SAE: its concepts. SaeError when it is not there, or not for the checkpoint."""
    asked = urlencode({"sae": way.sae, "checkpoint": way.checkpoint})
    try:
        answer = host.get_json(f"/saemnesia/concepts?{asked}")
    except HostError as error:
        lacking = "HTTP 404" in str(error)
        raise SaeError(f"the ComfyUI at {host.url} does not have SAEmnesia: install it there" if lacking
                       else str(error)) from error
    if answer["unfit"]:
        raise SaeError(answer["unfit"])
    return answer


def matched(wanted: Sequence[str], answer: Mapping[str, Any], way: Way,
            given: Mapping[str, str] | None = None) -> dict[str, str]:
    """{a name that is wanted: what the file calls it}: as it is `given`, else in any case, in singular or plural, with
    or without "style"; `#12` is a neuron. SaeError names those that the file has not."""
    have = {form: c["name"] for c in reversed(answer["concepts"]) for form in forms(c["name"])}
    found = {name: (given or {}).get(name) or (name if name.startswith("#") else _first(have, name))
             for name in wanted}
    missing = [name for name, called in found.items() if not called]
    if missing:
        some = ", ".join(c["name"] for c in answer["concepts"][:5]) or "no concept names"
        raise SaeError(f"{way.sae} has no concept for {', '.join(missing)} (it has {some}{' ...' * bool(have)}): leave "
                       f"them out, or say what it calls them (a neuron: #12)")
    return found


def _first(have: Mapping[str, str], name: str) -> str | None:
    return next((have[form] for form in forms(name) if form in have), None)


def forms(name: str) -> list[str]:
    """What a name is compared by, the name itself first.

    >>> forms("Van_Gogh"), forms("Dogs")[:2]
    (['van gogh'], ['dogs', 'dog'])
    """
    word = name.casefold().replace("_", " ").removesuffix(" style").strip()
    return list(dict.fromkeys((word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word))))


# --- a command -----------------------------------------------------------------------------------------


def options(description: str, out: str, steps: int) -> argparse.ArgumentParser:
    """What every command here is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True,
                        help="a file of ComfyUI's models/checkpoints, or a folder of its models/diffusers")
    parser.add_argument("--sae", required=True, help="as SAEmnesia Load SAE lists it")
    parser.add_argument("--hookpoint", default="", help="only where the SAE's file does not say it")
    parser.add_argument("--host", default=HOST, help=f"where your ComfyUI listens ({HOST})")
    parser.add_argument("--start", action="store_true", help="start the ComfyUI of `make setup`, on the CPU, instead")
    parser.add_argument("--actuator", default="ablate", help="as SAEmnesia Erase has it (ablate)")
    parser.add_argument("--strength", type=float, help="of every concept; the actuator's own unless given")
    parser.add_argument("--steps", type=int, default=steps, help=f"of DDIM ({steps})")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"a folder for what was finished ({out})")
    parser.add_argument("--quick", action="store_true", help="a small part of it, to see that all is there")
    return parser


def way_of(asked: argparse.Namespace) -> Way:
    return Way(asked.checkpoint, asked.sae, asked.steps, asked.actuator, asked.strength, asked.hookpoint)


@contextmanager
def server(asked: argparse.Namespace) -> Iterator[ComfyServer]:
    """The ComfyUI that the options name. A user's mistake ends the command with its sentence."""
    try:
        with ComfyHost() if asked.start else nullcontext(ComfyServer(asked.host)) as host:
            yield host
    except (SaeError, HostError) as error:
        raise SystemExit(str(SaeError(str(error)))) from error
    except KeyboardInterrupt:
        raise SystemExit(f"stopped: the same command goes on from what is in {asked.out}") from None


def keep_apart(out: Path, way: Way, answer: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of this run, written into its folder. SaeError when there are pictures of other settings in it."""
    digest = hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()[:16]
    path, settings = out / "settings.json", asdict(way) | {"sae says": digest} | dict(more)
    before = json.loads(path.read_text("utf-8")) if path.exists() else settings
    other = [f"{name} {before.get(name)}, now {now}" for name, now in settings.items() if before.get(name) != now]
    if other:
        raise SaeError(f"{out} has pictures of other settings ({other[0]}): delete it, or give another folder with "
                       f"--out")
    write_json(path, settings)
    return settings


class Progress:
    """Says how much is done, and how long the rest takes at the pace of this run."""

    def __init__(self, total: int, done: int, every: float = 10.0) -> None:
        """total: pictures; done: those of earlier runs; every: seconds between two lines."""
        self.total, self.done, self.before, self.every = total, done, done, every
        self.began = self.told = time.monotonic()

    def add(self, count: int, what: str) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told < self.every and self.done < self.total:
            return
        self.told = now
        left = (now - self.began) / (self.done - self.before) * (self.total - self.done)
        print(f"{what}: {self.done} of {self.total} pictures, {int(left / 3600)} h {int(left / 60) % 60:02} min left",
              flush=True)

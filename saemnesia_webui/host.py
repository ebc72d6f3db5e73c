"""What we ask of the host to paint with it: its checkpoint, prompt encoder, sampler, queue and progress."""
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from modules import devices, extra_networks, images, paths, processing, prompt_parser, scripts, sd_models, shared
from modules.call_queue import queue_lock

from sae_models import SaeError
from sae_models.learning.painting import Painting

SAMPLER = "Euler"
JOB = "SAEmnesia"


class Stopped(SaeError):
    """The host was told to interrupt."""

    def __init__(self) -> None:
        super().__init__("stopped: nothing was written; asked for again, it goes on where it was")


@dataclass
class _Stops:
    """pressed: how often *Stop* was; known: how often when the job that runs was asked for."""
    pressed: int = 0
    known: int = 0


_stops = _Stops()


@contextmanager
def job() -> Iterator[None]:
    """One of the host's jobs: after those that wait before it, and shown and interrupted as they are.

    Raises Stopped where it was stopped while it waited.
    """
    known = _stops.pressed
    with queue_lock:
        _stops.known = known
        shared.state.begin(job=JOB)
        try:
            check_stopped()
            yield
        finally:
            shared.state.end()
            shared.total_tqdm.clear()


def stop() -> None:
    """Stop our jobs, those that wait too, and no other. The host may forget that it was told to interrupt."""
    _stops.pressed += 1
    if shared.state.job == JOB:
        shared.state.interrupt()


def check_stopped() -> None:
    """Raises Stopped after an interrupt."""
    state = shared.state
    if state.interrupted or state.skipped or getattr(state, "stopping_generation", False) \
            or _stops.pressed > _stops.known:
        raise Stopped


def loaded() -> Any:
    """The checkpoint that is in memory, or None; nothing is loaded for it."""
    model = getattr(getattr(sd_models, "model_data", None), "sd_model", None)
    return model if hasattr(model, "get_learned_conditioning") else None


def current() -> Any:
    """The checkpoint that it paints with."""
    return shared.sd_model


def model() -> Any:
    """The checkpoint that is chosen, without the LoRAs of the last picture. Forge loads it only now.

    Raises SaeError when there is none.
    """
    try:
        if hasattr(sd_models, "forge_model_reload"):
            sd_models.forge_model_reload()
        elif hasattr(sd_models, "reload_model_weights"):
            sd_models.reload_model_weights()  # where a refiner or an API call left another one
        loaded = shared.sd_model
        if loaded is None:
            raise ValueError("none is chosen")
    except Exception as error:
        raise SaeError(f"no checkpoint is loaded ({error}): choose one at the top of the page") from error
    p = processing.StableDiffusionProcessingTxt2Img()
    p.all_prompts = []
    with _none_added(), torch.no_grad(), devices.autocast():
        extra_networks.activate(p, {})
    if hasattr(loaded, "set_clip_skip"):
        loaded.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))
    return loaded


@contextmanager
def _none_added() -> Iterator[None]:
    """Meanwhile no LoRA or hypernetwork is in every prompt, as the host's settings may have it."""
    options = getattr(shared.opts, "data", {})
    before = {name: options[name] for name in ("sd_lora", "sd_hypernetwork") if name in options}
    options.update(dict.fromkeys(before, "None"))
    try:
        yield
    finally:
        options.update(before)


def device() -> torch.device:
    """What it computes on."""
    return torch.device(getattr(devices, "device", None) or "cpu")


def checkpoint_name() -> str:
    """The file that the loaded checkpoint came from."""
    return getattr(getattr(shared.sd_model, "sd_checkpoint_info", None), "filename", "") or "words"


def encode(texts: Sequence[str], painting: Painting) -> dict[str, torch.Tensor]:
    """Prompts as the UNet is told them: {"crossattn": [n, length, width]}, and for SDXL "vector" [n, d]."""
    said = prompt_parser.SdConditioning(list(texts), width=painting.width, height=painting.height)
    with torch.no_grad(), devices.autocast():
        read = shared.sd_model.get_learned_conditioning(said)
    return dict(read) if isinstance(read, dict) else {"crossattn": read}


def precision() -> AbstractContextManager[Any]:
    """What it samples in."""
    return devices.without_autocast() if getattr(devices, "unet_needs_upcast", False) else devices.autocast()


def masks_shown(p: Any) -> int:
    """How many pictures of its mask it puts behind each picture of an inpainting."""
    wanted = [getattr(shared.opts, name, False) for name in ("return_mask", "return_mask_composite")]
    return sum(map(bool, wanted)) if getattr(p, "mask_for_overlay", None) is not None else 0


def painted_box(p: Any) -> tuple[int, int, int, int] | None:
    """(x, y, width, height) of what was painted of a larger picture, in *Only masked*; None where that is all of it."""
    return getattr(p, "paste_to", None) if getattr(shared.opts, "overlay_inpaint", True) else None


def font(size: int) -> Any:
    """The one that it writes on its grids with."""
    return images.get_font(size)


def expect(batches: int) -> None:
    """How many more batches the host's progress bar is to reckon with."""
    shared.state.job_count = batches


def say(text: str) -> None:
    """Show a line beside the host's progress bar."""
    shared.state.textinfo = text


def skip_batch() -> None:
    shared.state.nextjob()


def paint(texts: Sequence[str], seeds: Sequence[int], painting: Painting) -> None:
    """One batch of pictures with the host's own sampler, without scripts and LoRAs; nothing of it is saved."""
    with _last_prompt_kept(), closing(processing.StableDiffusionProcessingTxt2Img(
            prompt=list(texts), negative_prompt=painting.negative, seed=list(seeds), batch_size=len(texts),
            steps=painting.steps, cfg_scale=painting.cfg, width=painting.width, height=painting.height,
            sampler_name=SAMPLER, restore_faces=False, tiling=False, do_not_save_samples=True, do_not_save_grid=True,
            do_not_reload_embeddings=True)) as p:
        p.scripts, p.disable_extra_networks = scripts.ScriptRunner(), True  # no runner at all breaks reForge
        processing.process_images(p)


@contextmanager
def _last_prompt_kept() -> Iterator[None]:
    """Afterwards params.txt is what it was, from which the host's page fills in the prompt of the last picture; most
    hosts do not write it at all meanwhile."""
    options, name = shared.cmd_opts, "no_prompt_history"
    before, file = getattr(options, name, False), Path(getattr(paths, "data_path", ".")) / "params.txt"
    said = file.read_bytes() if file.exists() else None
    setattr(options, name, True)
    try:
        yield
    finally:
        setattr(options, name, before)
        if said is None:
            file.unlink(missing_ok=True)
        elif file.read_bytes() != said:
            file.write_bytes(said)

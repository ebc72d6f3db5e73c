"""A stand-in for A1111 and Forge, of our own making: the contract that was measured on the real ones, and no more.

It swallows what scripts and callbacks raise, puts conditional rows first (Forge: last, and says so), splits calls,
swaps models in the middle of sampling, runs inner passes as ADetailer does, and has options that raise. Its UNet is the
real one of `ldm`; a "picture" is the latent that sampling ends with. Its prompt encoder has a vector a word. gradio and
fastapi are empty here: test_webui_page.py runs the real ones.
"""
import importlib.util
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from PIL import Image, ImageFont
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[1]
SCRIPT = REPO / "scripts" / "saemnesia.py"
ALPHAS = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000).square().neg().add(1).cumprod(0)


class QueueLock:
    """The host's, with how often somebody asked for it."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.Lock(), 0

    def __enter__(self) -> None:
        self.asked += 1
        self.lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self.lock.release()


class Options:
    """`on_ui_settings` is not called without a page: an extension's own options do not exist then."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def axis_option(label: str, kind: type, apply: Callable, confirm: Callable | None = None,
                choices: Callable | None = None) -> SimpleNamespace:
    """An axis of the X/Y/Z plot. confirm: gets the list of values before the plot starts, and raises."""
    return SimpleNamespace(label=label, kind=kind, apply=apply, confirm=confirm)


def sd_model(unet: nn.Module, forge: bool = False, sgm: bool = False, encode: Callable | None = None) -> Any:
    """A loaded checkpoint: A1111's `model.diffusion_model`, or Forge's `forge_objects` without `.model`.

    encode: texts to [n, 77, 768], by default a random vector a word.
    """
    levels = ((1 - ALPHAS) / ALPHAS).sqrt().log()

    def learned(texts: list[str]) -> Any:
        said = encode(texts) if encode else torch.cat([_embed(text, 77) for text in texts])
        return {"crossattn": said, "vector": said[:, 0]} if sgm else said
    about = {"get_learned_conditioning": learned, "sd_checkpoint_info": SimpleNamespace(filename="/x/small v1.ckpt")}
    if not forge:
        return SimpleNamespace(model=SimpleNamespace(diffusion_model=unet), alphas_cumprod=ALPHAS, sgm=sgm, **about)
    kmodel = SimpleNamespace(diffusion_model=unet, predictor=SimpleNamespace(log_sigmas=levels))
    patcher = SimpleNamespace(model=kmodel, add_block_modifier=lambda *a: None, model_options={}, backup={})
    return SimpleNamespace(forge_objects=SimpleNamespace(unet=patcher), **about)


class State(SimpleNamespace):
    """The host's job: what its progress bar and its *Interrupt* are about. seen: its text, job_no and job_count at each
    step."""

    def __init__(self) -> None:
        super().__init__(job="", job_no=0, job_count=0, sampling_step=0, interrupted=False, skipped=False,
                         textinfo=None, seen=[], time_start=None)

    def begin(self, job: str) -> None:
        vars(self).update(job=job, job_no=0, job_count=-1, sampling_step=0, interrupted=False, skipped=False,
                          textinfo=None, time_start=time.monotonic())

    def end(self) -> None:
        vars(self).update(job="", job_count=0)

    def interrupt(self) -> None:
        self.interrupted = True

    def nextjob(self) -> None:
        vars(self).update(job_no=self.job_no + 1, sampling_step=0)


class Interrupted(Exception):
    """What the hosts stop sampling with, and catch."""


class Wanted:
    """StableDiffusionProcessingTxt2Img, as far as it is asked for here."""
    scripts = None

    def __init__(self, **wanted: Any) -> None:
        vars(self).update(wanted)

    def close(self) -> None:
        pass


@dataclass
class Processing:
    """What a person asks for. prompts: per picture, the texts of `a AND b`, or numbers for them; tokens: length of
    prompt and negative; euler: sampled as Euler does, and not in a way that only moves."""
    prompts: list[list[int | str]] = field(default_factory=lambda: [[1]])
    tokens: tuple[int, int] = (77, 77)
    timesteps: tuple[float, ...] = (999.0, 666.0, 333.0)
    size: tuple[int, int] = (8, 8)
    n_iter: int = 1
    evaluations: int = 1  # a step of Heun has two
    batch_cond_uncond: bool = True
    cond_only_above: float = 1000.0  # a negative prompt ignored in the first steps; by timestep
    cond_only_below: float = -1.0  # NGMS: left out in the last ones
    hires: bool = False
    hires_model: Any = None
    first: bool = True  # not when the page upscales a picture that is there
    refiner: Any = None
    tiles: int = 1
    inner: bool = False  # ADetailer repaints every picture
    inner_scripts: bool = False  # with our script named in its settings
    loads: Any = None  # the checkpoint that this run has to load first
    cfg: float = 5.0
    seeds: tuple[int, ...] = ()
    euler: bool = False
    script_args: tuple = ()
    scripts: tuple = ()
    is_hr_pass: bool = False
    upscales: bool = True  # not with an upscaler that does not exist
    stops_at: int = -1  # Interrupt before this step
    c: Any = None  # the prompt's schedules
    extra_generation_params: dict = field(default_factory=dict)
    saved_before_hires: list = field(default_factory=list)  # the texts of pictures that the host saves in between
    comments: list = field(default_factory=list)
    decoded: bool = False  # into pictures, where they are not left latents
    grid: bool = False  # of all pictures, before them
    mask_for_overlay: Any = None  # the host puts it behind each picture

    @property
    def enable_hr(self) -> bool:
        return self.hires

    def comment(self, text: str) -> None:
        """What the page shows below the picture."""
        self.comments.append(text)

    def text(self) -> dict:
        """As the hosts write it: what is a function is called, with all that they know, and None is left out."""
        known = {"p": self, "name": "", "job": "", "key": "", "index": 0}
        said = {key: value(**known) if callable(value) else value
                for key, value in self.extra_generation_params.items()}
        return {key: value for key, value in said.items() if value is not None}


class Processed(SimpleNamespace):
    """images, infotexts: one a picture, from index_of_first_image on; latents: of the pictures; extra_images: what
    newer hosts show beside these, and no script takes for them."""


def as_picture(latents: Tensor) -> Image.Image:
    pixels = (255 * latents[:3].sigmoid()).byte().movedim(0, -1).contiguous()
    return Image.fromarray(pixels.numpy()).resize((8 * latents.shape[2], 8 * latents.shape[1]))


class Webui:
    """The host. `spy`: called in every UNet call with the sigma and which rows are conditional."""

    def __init__(self, models: Path, model: Any, forge: bool = False, beside: bool = True) -> None:
        self.models, self.forge, self.beside = models, forge, beside
        options = SimpleNamespace(api_auth=None, no_prompt_history=False)
        self.shared = SimpleNamespace(sd_model=model, opts=Options(), cmd_opts=options, state=State(),
                                      total_tqdm=SimpleNamespace(clear=lambda: None))
        self.chosen = model
        self.writes_history = False  # into params.txt, whatever its options say: Forge Classic
        self.activated: list[tuple[Any, list]] = []
        """Of each time extra networks are put on: the LoRA in every prompt, and the prompts."""
        self.painted: list[Processing] = []  # by other means than `generate`
        self.callbacks: dict[str, list[Callable]] = {}
        self.errors: list[Exception] = []
        self.autocast: Any = nullcontext
        self.spy: Callable[[float, Tensor], None] = lambda sigma, conditional: None
        self.grid = SimpleNamespace(axis_options=[], AxisOption=axis_option)

    # --- loading the script --------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator["Webui"]:
        """Put the modules an extension imports into place, and take them away again."""
        def listen(kind: str) -> Callable:
            return lambda callback: self.callbacks.setdefault(kind, []).append(callback)
        grid_script = SimpleNamespace(script_class=type("Script", (), {"__module__": "xyz_grid.py"}), module=self.grid)
        names = {
            "paths": {"models_path": str(self.models), "data_path": str(self.models)},
            "shared": vars(self.shared),
            "script_callbacks": {f"on_{kind}": listen(kind) for kind in (
                "cfg_denoiser", "app_started", "before_ui", "script_unloaded", "model_loaded")},
            "scripts": {"Script": object, "AlwaysVisible": object(), "scripts_data": [grid_script],
                        "ScriptRunner": lambda: SimpleNamespace(alwayson_scripts=[])},
            "devices": {"autocast": nullcontext},
            "sd_models": {"model_data": self} | ({} if self.forge else {"reload_model_weights": self.swap_back}),
            "call_queue": {"queue_lock": QueueLock()},
            "images": {"get_font": ImageFont.load_default},
            "extra_networks": {"activate": self._activate},
            "prompt_parser": {"SdConditioning": lambda texts, width, height: list(texts)},
            "processing": {"StableDiffusionProcessingTxt2Img": Wanted, "process_images": self.process_images},
        }
        before = dict(sys.modules)
        sys.modules["modules"] = package = ModuleType("modules")
        for name, content in names.items():
            module = ModuleType(f"modules.{name}")
            vars(module).update(content)
            sys.modules[f"modules.{name}"] = module
            setattr(package, name, module)
        self.shared = sys.modules["modules.shared"]
        for name in ("gradio", "fastapi", "fastapi.security"):
            sys.modules.setdefault(name, MagicMock())
        try:
            self.script = self.load()
            yield self
        finally:
            for name in set(sys.modules) - set(before):
                if name.partition(".")[0] in ("modules", "gradio", "fastapi", "saemnesia_webui"):
                    del sys.modules[name]

    @property
    def sd_model(self) -> Any:
        """What is in memory, as `sd_models.model_data` says it."""
        return self.shared.sd_model

    def swap_back(self) -> None:
        """To the checkpoint that is chosen, from a refiner or another one that the last run left."""
        self.shared.sd_model = self.chosen

    def load(self) -> Any:
        """As the hosts do: under its file name, with the extension on the path only meanwhile."""
        path = sys.path
        sys.path = [str(REPO), *path]
        try:
            spec = importlib.util.spec_from_file_location(SCRIPT.name, SCRIPT)
            self.module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.module)
        finally:
            sys.path = path
        return self.module.SaemnesiaScript()

    def reload(self) -> None:
        """"Reload UI"."""
        self.fire("script_unloaded")
        self.callbacks.clear()
        self.script = self.load()

    def fire(self, kind: str, *values: Any) -> None:
        for callback in self.callbacks.get(kind, []):
            self._swallow(callback, *values)

    def _swallow(self, call: Callable, *values: Any) -> None:
        try:
            call(*values)
        except Exception as error:
            self.errors.append(error)

    def _scripts(self, p: Processing, event: str, *values: Any) -> None:
        for script in p.scripts:
            if hasattr(script, event):
                self._swallow(getattr(script, event), p, *values, *p.script_args)

    # --- a generation --------------------------------------------------------------------------------------

    def generate(self, *args: Any, use_script: bool = True, **options: Any) -> Processed:
        """One run; `args`: those of our script."""
        p = Processing(script_args=args, scripts=(self.script,) if use_script else (), **options)
        self.shared.state.begin("task")
        try:
            return self.run(p)
        finally:
            self.shared.state.end()

    @property
    def history(self) -> Path:
        """Of the last picture, from which the page fills in its prompt."""
        return self.models / "params.txt"

    def _activate(self, p: Any, data: dict) -> None:
        self.activated.append((self.shared.opts.data.get("sd_lora", "None"), p.all_prompts))

    def process_images(self, wanted: Wanted) -> Processed:
        """What an extension that paints by itself asks for."""
        assert wanted.scripts.alwayson_scripts == []  # reForge asks without looking whether there is a runner
        assert wanted.do_not_save_samples and wanted.do_not_save_grid
        if not wanted.disable_extra_networks:
            self._activate(wanted, {})
        assert wanted.sampler_name == "Euler" and wanted.batch_size == len(wanted.prompt) == len(wanted.seed)
        p = Processing([[text] for text in wanted.prompt], cfg=wanted.cfg_scale, seeds=tuple(wanted.seed), euler=True,
                       timesteps=tuple(torch.linspace(999, 0, wanted.steps + 1)[:-1].tolist()),
                       size=(wanted.height // 8, wanted.width // 8))
        self.painted.append(p)
        if self.writes_history or not self.shared.cmd_opts.no_prompt_history:
            self.history.write_text(wanted.prompt[0])
        if self.shared.state.job_count == -1:
            self.shared.state.job_count = 1
        if self.shared.state.interrupted:
            return Processed(images=[], infotexts=[])
        processed = self.run(p)
        self.shared.state.nextjob()
        return processed

    def run(self, p: Processing) -> Processed:
        self._scripts(p, "before_process")
        if p.loads is not None:
            self.shared.sd_model = p.loads
            self.fire("model_loaded", p.loads)
        self._scripts(p, "process")
        images, infotexts = [], []
        for batch in range(p.n_iter):
            self._scripts(p, "before_process_batch")
            self._scripts(p, "process_batch")
            samples = SimpleNamespace(samples=self._sample(p, batch))
            self._scripts(p, "post_sample", samples)
            if not getattr(samples.samples, "already_decoded", False):
                decoded = [sample.clone() for sample in samples.samples]
            images += [self._inner(p, image) for image in decoded] if p.inner else decoded
            infotexts += [p.text()] * len(decoded)
        latents = images
        if p.decoded:
            images = [as_picture(image) for image in images]
        if p.mask_for_overlay is not None:
            images = [shown for image in images for shown in (image, p.mask_for_overlay)]
        if p.grid:
            images, infotexts = [Image.new("RGB", (9, 9)), *images], [infotexts[0], *infotexts]
        processed = Processed(images=images, infotexts=infotexts, index_of_first_image=int(p.grid), latents=latents,
                              comments=p.comments, before_hires=p.saved_before_hires)
        if self.beside:
            processed.extra_images = []
        self._scripts(p, "postprocess", processed)
        return processed

    def _inner(self, p: Processing, image: Tensor) -> Tensor:
        """ADetailer: everybody's postprocess early, a pass without most scripts, then process on a copy."""
        self._scripts(copy(p), "postprocess", Processed(images=[], infotexts=[]))
        again = self.run(Processing(prompts=p.prompts[:1], timesteps=p.timesteps[-1:], script_args=p.script_args,
                                    decoded=p.decoded, scripts=p.scripts if p.inner_scripts else ()))
        self._scripts(copy(p), "before_process")
        self._scripts(copy(p), "process")
        return image + again.latents[0]

    def _sample(self, p: Processing, batch: int) -> Tensor:
        with torch.inference_mode() if self.forge else torch.no_grad():
            x = self._pass(p, batch, p.size) if p.first else torch.zeros(len(p.prompts), 4, *p.size)
            if p.hires:
                p.saved_before_hires.append(p.text())
                if not p.upscales:
                    raise ValueError("no such upscaler")
                p.is_hr_pass = True
                self.shared.sd_model = p.hires_model or self.shared.sd_model
                x = self._pass(p, batch, (2 * p.size[0], 2 * p.size[1]), start=x)
                p.is_hr_pass = False
        return x

    def _pass(self, p: Processing, batch: int, size: tuple[int, int], start: Tensor | None = None) -> Tensor:
        x = torch.cat([torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed)) for seed in p.seeds]) \
            if p.seeds else torch.randn(len(p.prompts), 4, *size, generator=torch.Generator().manual_seed(batch))
        x = x if start is None else x + nn.functional.interpolate(start, size)
        if p.euler:
            return self._euler(p, x)
        for step, timestep in enumerate(p.timesteps):
            if step == p.stops_at:
                self.shared.state.interrupt()
            if self.shared.state.interrupted:
                return x
            if p.refiner is not None and step == 1:
                self.shared.sd_model = p.refiner
            self.step = step
            for part in range(p.evaluations):
                x = x - 0.1 * self._evaluate(p, x, timestep - 0.25 * part)
        return x

    def _euler(self, p: Processing, x: Tensor) -> Tensor:
        sigmas = [*map(sigma_at, p.timesteps), 0.0]
        x = x * sigmas[0]
        try:
            for i, timestep in enumerate(p.timesteps):
                self.shared.state.sampling_step = i
                eps = self._evaluate(p, x / (1 + sigmas[i] ** 2) ** 0.5, timestep)
                x = x + (sigmas[i + 1] - sigmas[i]) * eps
        except Interrupted:
            pass
        return x

    def _evaluate(self, p: Processing, x: Tensor, timestep: float) -> Tensor:
        """One evaluation of classifier-free guidance."""
        if self.shared.state.interrupted:
            raise Interrupted
        state = self.shared.state
        state.seen.append((state.textinfo, state.job_no, state.job_count))
        cond = torch.cat([self._embed(text, p.tokens[0]) for texts in p.prompts for text in texts])
        uncond = torch.cat([self._embed("" if p.euler else 0, p.tokens[1])] * len(x))
        owners = [i for i, texts in enumerate(p.prompts) for _ in texts]
        x_cond = x[owners]
        sgm = getattr(self.shared.sd_model, "sgm", False)
        said = [{"crossattn": c, "vector": c[:, 0]} if sgm else c for c in (cond, uncond)]
        self.fire("cfg_denoiser", SimpleNamespace(
            x=x if self.forge else torch.cat([x_cond, x]), sigma=None, text_cond=said[0], text_uncond=said[1],
            denoiser=SimpleNamespace(p=p, step=getattr(self, "step", 0))))
        rows = self._forge_rows(p, x, uncond) if self.forge else [(x_cond, cond, True), (x, uncond, False)]
        rows = [part for part in rows if part[2] or p.cond_only_below < timestep <= p.cond_only_above]
        together = p.batch_cond_uncond and (len(rows) == 1 or p.tokens[0] == p.tokens[1])
        calls = [rows] if together else [[part] for part in rows]
        parts = [part for call in calls for part in self._call(call, timestep, p.tiles)]
        eps = list(zip(parts, [kind for _, _, kind in rows], strict=True))
        owners = owners if not self.forge else list(range(len(x))) * len(p.prompts[0])
        total = torch.zeros_like(x).index_add(0, torch.tensor(owners), torch.cat([out for out, kind in eps if kind]))
        uncond = next((out for out, kind in eps if not kind), total)
        return uncond + p.cfg * (total - uncond)

    def _embed(self, text: int | str, tokens: int) -> Tensor:
        if isinstance(text, int):
            return _embed(text, tokens)
        said = self.shared.sd_model.get_learned_conditioning([text])
        return said["crossattn"] if isinstance(said, dict) else said

    def _forge_rows(self, p: Processing, x: Tensor, uncond: Tensor) -> list:
        """Unconditional rows first; of `a AND b` a chunk for every text."""
        texts = [torch.cat([self._embed(text, p.tokens[0]) for text in chunk])
                 for chunk in zip(*p.prompts, strict=True)]
        return [(x, uncond, False), *((x, text, True) for text in texts)]

    def _call(self, parts: list, timestep: float, tiles: int) -> list[Tensor]:
        """One UNet call for some rows, or one for each of the rows' tiles."""
        x, context = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        conditional = torch.tensor([kind for rows, _, kind in parts for _ in rows])
        slices = x.chunk(tiles, dim=3)
        out = torch.cat([self._unet(part, timestep, context, conditional, [kind for _, _, kind in parts])
                         for part in slices], 3)
        return list(out.split([len(rows) for rows, _, _ in parts]))

    def _unet(self, x: Tensor, timestep: float, context: Tensor, conditional: Tensor, kinds: list[bool]) -> Tensor:
        t = torch.full((len(x),), timestep)
        model = self.shared.sd_model
        self.spy(sigma_at(timestep), conditional)
        with self.autocast():
            if self.forge:
                options = {"cond_or_uncond": [int(not kind) for kind in kinds],
                           "sigmas": torch.full((len(x),), sigma_at(timestep))}
                unet = model.forge_objects.unet.model.diffusion_model
                return unet(x, t, context=context, transformer_options=options).float()
            if model.sgm:
                return model.model.diffusion_model(x, timesteps=t, context=context).float()
            return model.model.diffusion_model(x, t, context=context).float()


def unet_in(model: Any, forge: bool) -> nn.Module:
    return (model.forge_objects.unet.model if forge else model.model).diffusion_model


def unet_of(host: Webui) -> nn.Module:
    return unet_in(host.shared.sd_model, host.forge)


def hooks(unet: nn.Module) -> int:
    """How many hooks there are on its modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def sigma_at(timestep: float) -> float:
    """sigma = sqrt((1 - a) / a), linear in log sigma between whole timesteps."""
    levels = ((1 - ALPHAS) / ALPHAS).sqrt().log()
    low = int(timestep)
    return float(torch.lerp(levels[low], levels[min(low + 1, 999)], timestep - low).exp())


def _embed(text: int | str, tokens: int) -> Tensor:
    """A prompt as the text encoder gives it: [1, tokens, 768]. A number is a prompt at random."""
    if isinstance(text, int):
        return _vector(text, tokens)
    said = [_vector(zlib.crc32(word.encode()), 1) for word in text.replace(",", " ,").split()]
    return torch.cat([*said, *[_vector(0, 1)] * (tokens - len(said))], 1)


@cache
def _vector(seed: int, tokens: int) -> Tensor:
    return torch.randn(1, tokens, 768, generator=torch.Generator().manual_seed(seed))

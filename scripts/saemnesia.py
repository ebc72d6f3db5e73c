"""SAEmnesia in A1111, Forge, Forge Classic and reForge: the always-on script that they load.

Everything of ours is imported here at once: the hosts have this extension's folder on the path only now.
"""
import logging
from pathlib import Path
from typing import Any

from modules import paths, script_callbacks, scripts, shared

from saemnesia_webui import axes, heat, host, infotext, looking, panel, routes, settings
from saemnesia_webui.eraser import Eraser
from saemnesia_webui.find import Finder
from saemnesia_webui.job import Job, as_sentence
from saemnesia_webui.looking import Looker, Looking

MODELS = Path(paths.models_path)
log = logging.getLogger("saemnesia")


def running() -> tuple:
    """Tells the host's runs apart: when its job began, and whether it has one at all."""
    state = shared.state
    return getattr(state, "time_start", None), getattr(state, "job_timestamp", None), bool(getattr(state, "job", ""))


ERASER = Eraser(running)
FINDER = Finder(MODELS, ERASER.disarm)
LOOKER = Looker(running)


def say(p: Any, sentence: str) -> None:
    """In the log, and below the picture."""
    log.warning("SAEmnesia: %s", sentence)
    getattr(p, "comment", log.debug)(f"SAEmnesia: {sentence}")


class SaemnesiaScript(scripts.Script):
    """Hosts swallow every exception raised here: what goes wrong becomes the job's error, which stops the sampling."""

    def title(self) -> str:
        return "SAEmnesia"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        built = panel.build(self.elem_id, MODELS, FINDER)
        self.infotext_fields = built.infotext_fields
        self.paste_field_names = [target for _, target in built.infotext_fields]  # what "Send to img2img" takes along
        return built.components

    def process(self, p: Any, *args: Any) -> None:
        """Forget what an earlier run, perhaps an aborted one, left armed; then arm what is asked."""
        ERASER.disarm()
        LOOKER.detach()
        asked, seen = settings.Settings(), None
        try:
            asked = settings.read(args, axes.of(p))
            seen = Looking.prepare(asked, MODELS) if asked.map else None
            job = Job.prepare(asked, MODELS) if asked.enabled else None
            if job and job.edits:  # else nothing is asked for, or all of it with strength 0
                ERASER.arm(job, p)
        except Exception as error:
            if settings.erases(args, axes.of(p)):
                ERASER.arm(Job(asked, error=as_sentence(error)), p)
            else:
                seen = Looking(error=as_sentence(error))
        setattr(p, looking.ATTRIBUTE, seen)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """A batch begins. The text is cleared here and not in `process`, which ADetailer calls between pictures."""
        infotext.clear(p.extra_generation_params)
        if seen := looking.of(p):
            seen.begin()
        if ERASER.job:
            ERASER.job.begin()
            if getattr(p, "enable_hr", False):
                infotext.promise(p.extra_generation_params, ERASER.job)

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        """Pictures are decoded after this: refuse them, or say in their text what was erased."""
        stopped = bool(shared.state.interrupted or shared.state.skipped)
        ps.samples = ERASER.finished(ps.samples, stopped)
        refused = ERASER.job is not None and ERASER.job.error is not None
        if ERASER.job:
            infotext.write(p.extra_generation_params, ERASER.job)
            for sentence in () if refused else ERASER.job.warnings():
                say(p, sentence)
        LOOKER.detach()
        if (seen := looking.of(p)) and not refused:
            with host.precision():
                seen.finish(len(ps.samples), stopped)
            if sentence := seen.complaint():
                say(p, sentence)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """ADetailer calls this without pictures before it paints a part anew: that part is erased too."""
        if processed.images:
            ERASER.disarm()
            if seen := looking.of(p):
                seen.attempt(heat.add, processed, seen, host.font, host.painted_box(p), host.masks_shown(p))
                if sentence := seen.complaint():
                    say(p, sentence)


def on_cfg_denoiser(params: Any) -> None:
    """A model evaluation begins, in whatever pass of whatever script."""
    LOOKER.evaluation(shared.sd_model, params)
    ERASER.evaluation(shared.sd_model, params)
    FINDER.evaluation(params)


def on_app_started(demo: Any, app: Any) -> None:
    routes.add(app, MODELS, getattr(shared.cmd_opts, "api_auth", None), FINDER)


def add_axes() -> None:
    axes.add(scripts.scripts_data, MODELS)


script_callbacks.on_cfg_denoiser(on_cfg_denoiser)
script_callbacks.on_app_started(on_app_started)
script_callbacks.on_before_ui(add_axes)
script_callbacks.on_script_unloaded(ERASER.disarm)
script_callbacks.on_script_unloaded(LOOKER.detach)
add_axes()

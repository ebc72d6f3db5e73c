"""One generation's erasure: what is asked, what is wrong with it, and what has happened so far."""
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from sae_models import Actuator, Edit, Erasure, SaeError, hookpoint
from sae_models.adapter import CONDITIONAL_ONLY, LoadedSae, Tally, build_edit, fitting_block

from . import files
from .model import NoiseLevels, family_of, noise_levels, unet_of
from .settings import Settings

NOTHING = ("nothing was erased: block {block} did not run, because another extension or setting replaces or skips it "
           "(for example SD Unet): switch that off, or untick SAEmnesia")


def as_sentence(error: Exception) -> SaeError:
    """A user's mistake as it is; anything else says where it came from."""
    return error if isinstance(error, SaeError) else SaeError(f"SAEmnesia failed: {error!r}")


@dataclass
class Fitted:
    """An edit on one loaded model."""
    unet: nn.Module
    block: nn.Module
    levels: NoiseLevels
    erasure: Erasure


@dataclass
class Job:
    """An armed erasure. `error` stops every model call from then on; `skipped`: a pass was left alone as asked."""
    settings: Settings
    sae: LoadedSae | None = None
    edit: Edit | None = None
    error: SaeError | None = None
    fitted: Fitted | None = None
    tally: Tally = field(default_factory=Tally)
    pending: bool = False
    skipped: bool = False

    @classmethod
    def prepare(cls, settings: Settings, models: Path) -> "Job":
        """Read what the settings name.

        Raises SaeError for an SAE that cannot be read, an unknown concept or a strength out of range.
        """
        sae = files.load(models, settings.sae).at(settings.hookpoint)
        edit = build_edit(sae, settings.concepts, Actuator(settings.actuator),
                          conditional_only=settings.apply_to == CONDITIONAL_ONLY)
        return cls(settings, sae, edit)

    def begin(self) -> None:
        """A batch starts: what was counted before was another one."""
        self.tally, self.pending, self.skipped = Tally(), False, False

    def announce(self, sd_model: Any) -> None:
        """A model evaluation comes: fit the edit to the model that will run; what goes wrong is kept in `error`."""
        if self.pending:
            self.fail(self.not_run())
        self.pending = True
        try:
            if self.error is None:
                self.fitted = self._fit(sd_model)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.error = self.error or as_sentence(error)

    def not_run(self) -> SaeError:
        return SaeError(NOTHING.format(block=self.sae.header.hookpoint if self.sae else "of the SAE"))

    def _fit(self, sd_model: Any) -> Fitted:
        """The edit on this model: cheap, so done at every evaluation, because hosts swap models while sampling."""
        unet = unet_of(sd_model)
        bare = getattr(unet, "_orig_mod", unet)
        family = family_of(hookpoint.find(bare, self.sae.header.hookpoint))
        block = fitting_block(bare, self.sae, family)
        if self.fitted and self.fitted.unet is unet and self.fitted.block is block:
            return self.fitted
        levels = noise_levels(sd_model)
        edit = replace(self.edit, start_sigma=levels.at_share(self.settings.start),
                       end_sigma=levels.at_share(self.settings.end))
        return Fitted(unet, block, levels, Erasure([edit], residual=self.sae.header.residual))

    def verdict(self) -> SaeError | None:
        """After sampling: why the picture must not be shown as erased, or None."""
        if self.error is None and (self.pending or not (self.tally.model_calls or self.skipped)):
            self.error = self.not_run()
        return self.error

    @property
    def erased(self) -> bool:
        return self.error is None and self.tally.model_calls > 0

    def summary(self) -> str:
        return self.tally.summary(self.sae.block, list(self.edit.names))

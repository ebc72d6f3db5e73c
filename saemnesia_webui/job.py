"""One generation's erasure: what is asked, what is wrong with it, and what has happened so far."""
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from sae_models import Actuator, Edit, Erasure, SaeError, hookpoint
from sae_models.adapter import CONDITIONAL_ONLY, Block, LoadedSae, Tally, build_edits, fitting_blocks, shown

from . import files, taps
from .model import NoiseLevels, family_of, noise_levels, unet_of
from .settings import Settings

NOTHING = ("nothing was erased: block {block} did not run, because another extension or setting replaces or skips it "
           "(for example SD Unet): switch that off, or untick SAEmnesia")


def as_sentence(error: Exception) -> SaeError:
    """A user's mistake as it is; anything else says where it came from."""
    return error if isinstance(error, SaeError) else SaeError(f"SAEmnesia failed: {error!r}")


def fits(sae: LoadedSae, sd_model: Any) -> bool:
    """Whether the SAE fits a loaded model; False where its file does not say for which block it is.

    Raises SaeError with the reason why it does not.
    """
    return all(block.hookpoint for block in sae.blocks) and bool(_paths(sae, sd_model))


def _paths(sae: LoadedSae, sd_model: Any) -> dict[Block, str]:
    unet = unet_of(sd_model)
    bare = getattr(unet, "_orig_mod", unet)
    return fitting_blocks(bare, sae, family_of(hookpoint.find(bare, sae.headers[0].hookpoint)))


@dataclass
class Fitted:
    """Edits on one loaded model: the module and the erasure of each place, and how the host calls an attention."""
    unet: nn.Module
    modules: dict[Block, nn.Module]
    levels: NoiseLevels
    erasures: dict[Block, Erasure]
    attentions: dict[tuple[str, int, int], Block]


@dataclass
class Job:
    """An armed erasure. `error` stops every model call from then on; `skipped`: a pass was left alone as asked;
    `ran`: places that the last model call came to."""
    settings: Settings
    sae: LoadedSae | None = None
    edits: Sequence[tuple[Block, Edit]] = ()
    error: SaeError | None = None
    fitted: Fitted | None = None
    tally: Tally = field(default_factory=Tally)
    ran: set[Block] = field(default_factory=set)
    pending: bool = False
    skipped: bool = False

    @classmethod
    def prepare(cls, settings: Settings, models: Path) -> "Job":
        """Read what the settings name.

        Raises SaeError for an SAE that cannot be read, an unknown concept or a strength out of range.
        """
        sae = files.load(models, settings.sae).at(settings.hookpoint)
        edits = build_edits(sae, settings.concepts, Actuator(settings.actuator),
                            conditional_only=settings.apply_to == CONDITIONAL_ONLY)
        return cls(settings, sae, edits)

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
        """What to say when a place of the SAE did not run in the last model call."""
        blocks = [block for block, _ in self.edits]
        missing = [block.hookpoint for block in blocks if self.pending or block not in self.ran]
        return SaeError(NOTHING.format(block=shown(missing) or "of the SAE"))

    def _fit(self, sd_model: Any) -> Fitted:
        """The edit on this model: cheap, so done at every evaluation, because hosts swap models while sampling."""
        unet = unet_of(sd_model)
        bare = getattr(unet, "_orig_mod", unet)
        paths = _paths(self.sae, sd_model)
        modules = {block: bare.get_submodule(paths[block]) for block, _ in self.edits}
        if self.fitted and self.fitted.unet is unet and self.fitted.modules == modules:
            return self.fitted
        levels = noise_levels(sd_model)
        window = {"start_sigma": levels.at_share(self.settings.start), "end_sigma": levels.at_share(self.settings.end)}
        erasures = {block: Erasure([replace(edit, **window)], residual=block.residual) for block, edit in self.edits}
        return Fitted(unet, modules, levels, erasures, taps.keys({block: paths[block] for block in modules}))

    def verdict(self) -> SaeError | None:
        """After sampling: why the picture must not be shown as erased, or None."""
        if self.error is None and (self.pending or not (self.tally.model_calls or self.skipped)):
            self.error = self.not_run()
        return self.error

    @property
    def erased(self) -> bool:
        return self.error is None and self.tally.model_calls > 0

    def summary(self) -> str:
        return self.tally.summary(self._names())

    def fired(self) -> str:
        """In how many steps each concept was there to be erased, in words."""
        return self.tally.in_words(self._names())

    def _names(self) -> dict[Block, tuple[str, ...]]:
        return {block: edit.names for block, edit in self.edits}

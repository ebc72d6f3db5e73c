"""One generation's erasure: what is asked, what is wrong with it, and what has happened so far."""
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sae_models import Actuator, Choice, Edit, Erasure, SaeError, hookpoint, parse
from sae_models.adapter import (
    CONDITIONAL_ONLY,
    NO_STEP,
    Block,
    LoadedSae,
    Tally,
    build_edits,
    by_block,
    fitting_blocks,
    shown,
)
from sae_models.concepts import find, format_choices, mentioned
from sae_models.made_on import made_of
from sae_models.voting import NOISY, Voting

from . import files, taps
from .model import NoiseLevels, checkpoint_of, family_of, noise_levels, original_weights, unet_of
from .settings import Settings

NOTHING = ("nothing was erased: block {block} did not run, because another extension or setting replaces or skips it "
           "(for example SD Unet): switch that off, or untick SAEmnesia")
MIXED = ("erased in the negative prompt too, because another extension arranges the calls so that its part cannot be "
         "told from the prompt's")


def as_sentence(error: Exception) -> SaeError:
    """A user's mistake as it is; anything else says where it came from."""
    return error if isinstance(error, SaeError) else SaeError(f"SAEmnesia failed: {error!r}")


def chosen(settings: Settings, models: Path) -> list[LoadedSae]:
    """The files that the settings name.

    Raises SaeError for one that cannot be read, and where none is named.
    """
    return [files.load(models, name).at(settings.hookpoint) for name in files.split(settings.sae) or [""]]


def shared_out(saes: Sequence[LoadedSae], text: str) -> list[tuple[LoadedSae, str]]:
    """What of `text` each file is asked for: a concept goes to the first file that has it, a swap to the first that has
    both.

    Raises SaeError for an unknown concept, as `LoadedSae.find` does, and for a swap of concepts of two files.
    """
    choices, known = parse(text), [{c.name.casefold() for c in sae.concepts} for sae in saes]
    asked: list[list[Choice]] = [[] for _ in saes]
    for choice in choices:
        wanted = {one.name.casefold() for one in mentioned([choice])}
        owner = next((i for i, names in enumerate(known) if wanted <= names), None)
        if owner is None and len(saes) > 1:
            _refuse(choice, saes)
        asked[owner or 0].append(choice)
    return [(sae, format_choices(part)) for sae, part in zip(saes, asked, strict=True) if part]


def _refuse(choice: Choice, saes: Sequence[LoadedSae]) -> None:
    """Raise SaeError for what no file of several has, unless it is a neuron by its number."""
    named = [one for one in mentioned([choice]) if not one.name.startswith("#")]
    for one in named:
        find([c for sae in saes for c in sae.concepts], one.name, 0, ", ".join(sae.name for sae in saes))
    if len(named) > 1:
        raise SaeError(f"'{named[0].name}' and '{named[1].name}' are in different files, and a swap needs both in one: "
                       f"find both on this checkpoint, or choose a file that has them")


def fits(sae: LoadedSae, sd_model: Any) -> bool:
    """Whether the SAE fits a loaded model; False where its file does not say for which block it is.

    Raises SaeError with the reason why it does not.
    """
    return all(block.hookpoint for block in sae.blocks) and bool(paths_in(sd_model, sae))


def paths_in(sd_model: Any, sae: LoadedSae) -> dict[Block, str]:
    """The ldm path of every place of the SAE in a loaded model.

    Raises SaeError with the reason why it does not fit.
    """
    unet = unet_of(sd_model)
    bare = getattr(unet, "_orig_mod", unet)
    return fitting_blocks(bare, sae, family_of(hookpoint.find(bare, sae.headers[0].hookpoint)))


@dataclass
class Fitted:
    """Edits on one loaded model: the module and the erasure of each place, how the host calls an attention, and how the
    places voted in this run."""
    unet: nn.Module
    modules: dict[Block, nn.Module]
    levels: NoiseLevels
    erasures: dict[Block, Erasure]
    attentions: dict[tuple[str, int, int], Block]
    voting: Voting


@dataclass
class Job:
    """An armed erasure. `error` stops every model call from then on; `skipped`: a pass was left alone as asked;
    `fired`: which rows did in the last model call, of the places that it came to; `mixed`: the rows of the prompt could
    not be told from the others; `checkpoint`, `made_of`: the last model it ran on, by its name
    and by its weights."""
    settings: Settings
    saes: Sequence[LoadedSae] = ()
    edits: Sequence[tuple[Block, Edit]] = ()
    error: SaeError | None = None
    fitted: Fitted | None = None
    tally: Tally = field(default_factory=Tally)
    fired: dict[Block, Tensor] = field(default_factory=dict)
    pending: bool = False
    skipped: bool = False
    mixed: bool = False
    checkpoint: str = ""
    made_of: str = ""

    @classmethod
    def prepare(cls, settings: Settings, models: Path) -> "Job":
        """Read what the settings name.

        Raises SaeError for an SAE that cannot be read, an unknown concept or a strength out of range.
        """
        saes = chosen(settings, models)
        edits = [edit for sae, text in shared_out(saes, settings.concepts)
                 for edit in build_edits(sae, text, Actuator(settings.actuator),
                                         conditional_only=settings.apply_to == CONDITIONAL_ONLY)]
        return cls(settings, saes, edits)

    def begin(self) -> None:
        """A batch starts: what was counted before was another one."""
        self.tally, self.pending, self.skipped, self.mixed = Tally(), False, False, False
        if self.fitted:
            self.fitted.voting.forget()

    def announce(self, sd_model: Any) -> None:
        """A model evaluation comes: fit the edit to the model that will run; what goes wrong is kept in `error`."""
        if self.pending:
            self.fail(self.not_run())
        self.pending = True
        try:
            if self.error is None:
                self.fitted = self._fit(sd_model)
                self._know(sd_model)
        except Exception as error:
            self.fail(error)

    def _know(self, sd_model: Any) -> None:
        if (checkpoint := checkpoint_of(sd_model)) != self.checkpoint:
            self.checkpoint, self.made_of = checkpoint, made_of(original_weights(sd_model))

    def fail(self, error: Exception) -> None:
        self.error = self.error or as_sentence(error)

    def not_run(self) -> SaeError:
        """What to say when a place of the SAE did not run in the last model call."""
        blocks = by_block(self.edits)
        missing = [block.hookpoint for block in blocks if self.pending or block not in self.fired]
        return SaeError(NOTHING.format(block=shown(missing) or "of the SAE"))

    def _fit(self, sd_model: Any) -> Fitted:
        """The edit on this model: cheap, so done at every evaluation, because hosts swap models while sampling."""
        unet = unet_of(sd_model)
        bare = getattr(unet, "_orig_mod", unet)
        paths = {block: path for sae in self.saes for block, path in paths_in(sd_model, sae).items()}
        modules = {block: bare.get_submodule(paths[block]) for block, _ in self.edits}
        if self.fitted and self.fitted.unet is unet and self.fitted.modules == modules:
            return self.fitted
        levels = noise_levels(sd_model)
        window = {"start_sigma": levels.at_share(self.settings.start), "end_sigma": levels.at_share(self.settings.end)}
        erasures = {block: Erasure([replace(edit, **window) for edit in edits], residual=block.residual)
                    for block, edits in by_block(self.edits).items()}
        attentions = taps.keys({block: paths[block] for block in modules})
        voting = self.fitted.voting if self.fitted else Voting(erasures, levels.at_share(NOISY))
        return Fitted(unet, modules, levels, erasures, attentions, voting)

    def verdict(self, stopped: bool) -> SaeError | None:
        """After sampling: why the picture must not be shown as erased, or None; stopped: somebody interrupted it."""
        if self.error is None and not stopped and (self.pending or not (self.tally.calls or self.skipped)):
            self.error = self.not_run()
        return self.error

    @property
    def erased(self) -> bool:
        return self.error is None and bool(self.tally.calls) and not self.missed()

    def missed(self) -> str:
        """What to say where none of the steps lies in the window, else ""."""
        edit, sigmas = next(iter(self.fitted.erasures.values())).edits[0], self.tally.levels()
        if not sigmas or any(edit.active(sigma) for sigma in sigmas):
            return ""
        return NO_STEP.format(steps=len(sigmas), start=self.settings.start, end=self.settings.end)

    def warnings(self) -> list[str]:
        """What people should know of a run that was not refused."""
        said = [self.missed() if self.tally.calls else "", MIXED if self.mixed else "",
                *(sae.elsewhere(self.checkpoint, self.made_of) for sae in self.saes)]
        return [sentence for sentence in said if sentence]

    def summary(self) -> str:
        return self.tally.summary(self._names())

    def when(self) -> str:
        """In how many steps each concept was there to be erased, in words."""
        return self.tally.in_words(self._names())

    def _names(self) -> dict[Block, list[str]]:
        return {block: [label for edit in edits for label in edit.labels]
                for block, edits in by_block(self.edits).items()}

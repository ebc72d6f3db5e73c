"""Where the ticked concepts are in the pictures of a run: what *Concept Map* is in ComfyUI.

One call of the UNet more: the conditional rows of a late call of the run itself are made a little noisier, and the UNet
is asked once more with them while the concepts' neurons are read, and nothing is erased. That happens inside the run,
where the model is in its place; a run whose last step is earlier than that is looked at when it is over.
"""
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_models import SaeError, concept_map
from sae_models.adapter import Block, LoadedSae, Tap
from sae_models.concept_map import Sight
from sae_models.erasure import Erasure

from .calls import Call
from .job import as_sentence, chosen, paths_in, shared_out
from .model import LATENT, NoiseLevels, noise_levels, unet_of
from .rows import Rows
from .settings import Settings

AT = 0.95
"""How far in sampling it looks, as *Concept Map* does."""
ATTRIBUTE = "saemnesia_looking"
CUT = ("no call of the model saw the whole picture, because another extension or setting cuts it into tiles or "
       "replaces the model: switch that off")
MIXED = ("the model's calls do not say which picture is which, because another extension arranges them: switch that "
         "off, or paint one picture at once")


class Asked(NamedTuple):
    """What one file is asked for, and what reads it."""
    sae: LoadedSae
    names: list[str]
    readers: Mapping[Block, Erasure]

    @classmethod
    def of(cls, sae: LoadedSae, text: str) -> "Asked":
        names = concept_map.names_of(sae, text)
        return cls(sae, names, concept_map.readers(sae, names))


def of(p: Any) -> "Looking | None":
    return getattr(p, ATTRIBUTE, None)


@dataclass(eq=False)
class Looking:
    """What was seen so far in the run of one `p`.

    maps: of each finished picture, float [C, h, w] of `names`, None where there is none; strongest: only what is heard
    is to be shown; error: why nothing more is looked at.
    """
    asked: Sequence[Asked] = ()
    strongest: bool = False
    maps: list[Tensor | None] = field(default_factory=list)
    error: SaeError | None = None
    _said: bool = False
    _model: Any = None
    _rows: Rows = field(default_factory=Rows)
    _size: tuple[int, ...] = ()
    _waits: bool = False
    _done: bool = False
    _calls: list[Call] = field(default_factory=list, repr=False)
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)

    @classmethod
    def prepare(cls, settings: Settings, models: Path) -> "Looking":
        """For the concepts that the settings name; for none, all of the files."""
        try:
            saes, text = chosen(settings, models), settings.concepts.strip()
            parts = shared_out(saes, text) if text else [(sae, "") for sae in saes]
            return cls([Asked.of(sae, part) for sae, part in parts], strongest=not text)
        except Exception as error:
            return cls(error=as_sentence(error))

    @property
    def names(self) -> list[str]:
        return [name for asked in self.asked for name in asked.names]

    def begin(self) -> None:
        """A batch starts."""
        self._calls, self._seen = [], []

    def evaluation(self, sd_model: Any, params: Any) -> None:
        """The host is about to evaluate the model: `params` of its `on_cfg_denoiser`."""
        p = params.denoiser.p
        self._waits = getattr(p, "enable_hr", False) and not getattr(p, "is_hr_pass", False)
        self._model, self._rows, self._size = sd_model, Rows.of(params), tuple(params.x.shape[2:])
        self._calls, self._done = [], bool(self._seen)

    def call(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """The UNet is about to be called: keep the conditional rows, or look at them where that is late enough."""
        conditional = self._rows.of_call(args[0], kwargs.get("transformer_options"))
        whole = tuple(args[0].shape[2:]) == self._size
        if self._waits or self._done or not whole or conditional is None or not conditional.any():
            return
        kept = {name: value for name, value in kwargs.items() if name != "control"}  # Forge's is used up by the call
        call = Call(unet, args, kept).of(conditional)
        if is_late(call, noise_levels(self._model)):
            self._look(call)
        else:
            self._calls.append(call)

    def finish(self, pictures: int, stopped: bool) -> None:
        """Sampling of a batch is over; stopped: somebody interrupted it, so nothing is looked at any more."""
        if not stopped:
            for call in () if self._seen else self._calls:
                self.attempt(self._look, call)
            self.attempt(self._sort, pictures)
        if stopped or self.error:
            self.maps += [None] * pictures
        self.begin()

    def complaint(self) -> str:
        """Why there is no map, for people; said once."""
        if self.error is None or self._said:
            return ""
        self._said = True
        return f"no map of where the concepts are: {self.error}"

    def attempt(self, act: Callable[..., None], *what: Any) -> None:
        """Unless something failed before: a map that fails is no reason to lose the picture."""
        if self.error is None:
            try:
                act(*what)
            except Exception as error:
                self.error = as_sentence(error)

    def _look(self, call: Call) -> None:
        call, sigma = noisier(call, noise_levels(self._model))
        x = call.args[0]
        sights = [Sight(asked.readers, len(x), *x.shape[2:]) for asked in self.asked]
        for asked in self.asked:
            paths_in(self._model, asked.sae)
        taps = {block: _tap(block, [sight for sight in sights if block in sight.readers], sigma, len(x))
                for block in {block for sight in sights for block in sight.readers}}
        with torch.no_grad():
            call.again(taps)
        maps = [sight.maps(asked.names) for sight, asked in zip(sights, self.asked, strict=True)]
        self._seen.append((x[:, :LATENT].cpu(), torch.cat(maps).cpu()))

    def _sort(self, pictures: int) -> None:
        """A map a picture, of all its rows: a prompt may have several parts. Raises SaeError where there is none."""
        if not self._seen:
            raise SaeError(CUT)
        rows = [row for latents, maps in self._seen for row in zip(latents, maps.unbind(1), strict=True)]
        found = [[one] for _, one in rows] if len(rows) == pictures else by_picture(rows)
        if len(found) != pictures:
            raise SaeError(MIXED)
        self.maps += [torch.stack(parts).amax(0) for parts in found]


def by_picture(rows: Sequence[tuple[Tensor, Tensor]]) -> list[list[Tensor]]:
    """The maps of each picture, of (latents, map) of rows: those of one picture have the same latents."""
    found: list[tuple[Tensor, list[Tensor]]] = []
    for latents, one in rows:
        own = next((parts for known, parts in found if torch.equal(known, latents)), None)
        if own is None:
            found.append((latents, [one]))
        else:
            own.append(one)
    return [parts for _, parts in found]


def _tap(block: Block, sights: Sequence[Sight], sigma: float, rows: int) -> Tap:
    def tap(output: Tensor, x_in: Tensor | None) -> Tensor:
        for sight in sights:
            sight.see(block, output, sigma, rows, x_in)
        return output
    return tap


def is_late(call: Call, levels: NoiseLevels) -> bool:
    return float(call.timestep.max()) <= levels.timestep_at(AT)


def noisier(call: Call, levels: NoiseLevels) -> tuple[Call, float]:
    """The call at the noise level that is looked at, or its own where that is higher; and sigma there.

    What the UNet gets are pictures with noise, divided by sqrt(1 + sigma^2).
    """
    before = float(call.timestep.max())
    timestep = max(before, levels.timestep_at(AT))
    low, sigma = levels.sigma(before), levels.sigma(timestep)
    x = call.args[0]
    noise = torch.randn(x[:, :LATENT].shape[1:], generator=torch.Generator().manual_seed(0)).to(x.device)
    latents = x[:, :LATENT].float() * (1 + low ** 2) ** 0.5 + max(0.0, sigma ** 2 - low ** 2) ** 0.5 * noise
    mixed = torch.cat([(latents / (1 + sigma ** 2) ** 0.5).to(x), x[:, LATENT:]], 1)
    return call.at(mixed, timestep, sigma), sigma


class Looker:
    """The hook on the host's UNet by which a run's `Looking` sees its calls; running: tells the host's runs apart.

    It is there from one evaluation of the model to the next, and what it saw is kept by `p` alone.
    """

    def __init__(self, running: Callable[[], Any]) -> None:
        self._running = running
        self._hook: Any = None

    def detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def evaluation(self, sd_model: Any, params: Any) -> None:
        """The host is about to evaluate the model: `params` of its `on_cfg_denoiser`."""
        self.detach()
        looking = of(getattr(params.denoiser, "p", None))
        if looking is not None:
            looking.attempt(self._attach, looking, sd_model, params)

    def _attach(self, looking: Looking, sd_model: Any, params: Any) -> None:
        """Before all other hooks, the eraser's too: what it puts into the call is not to be seen."""
        looking.evaluation(sd_model, params)
        self._hook = unet_of(sd_model).register_forward_pre_hook(self._visit(looking), with_kwargs=True, prepend=True)

    def _visit(self, looking: Looking) -> Callable[[nn.Module, tuple, dict], None]:
        run, known = self._running(), weakref.ref(looking)

        def visit(unet: nn.Module, args: tuple, kwargs: dict) -> None:
            """Of the run that it was made for: where that broke, nobody says so."""
            looking = known()
            if looking is None or self._running() != run:
                return self.detach()
            looking.attempt(looking.call, unet, args, kwargs)
        return visit

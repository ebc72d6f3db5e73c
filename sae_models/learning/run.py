"""A training run: the SAEs of one place or of several, learning in step from the same pictures.

All take their steps on the same chunks and the same maps of them, so the pictures are painted once, and each learns
what it would alone. The whole state of a run is one checkpoint: a run that was stopped goes on as if it had not been.
"""
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import SaeError
from ..storage import write_tensors
from . import parallel
from .maps import move_together

if TYPE_CHECKING:
    from .training import Trainer

Progress = Callable[[int, dict[str, float]], None]
METADATA_KEY, SUMS_KEY = "saemnesia-training", "saemnesia-sums"
REPORT_EVERY = 10


class Run(ABC):
    """What trainers have in common, be it one or several."""

    @property
    @abstractmethod
    def trainers(self) -> Mapping[str, "Trainer"]:
        """By place; the only one's is ""."""

    def sound(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(p.isfinite().all()) for trainer in self.trainers.values() for p in trainer.sae.parameters())

    def run(self, progress: Progress, save: Callable[..., None] = lambda now=False: None) -> None:
        """Train to the end. `progress(step, {"fvu": ..., ...})` is called after every step, every `REPORT_EVERY` steps
        with numbers and then followed by `save()`; what `progress` or the making of maps raises stops the run, after a
        last `save(now=True)`.

        Raises SaeError when the loss is no longer a number.
        """
        trainers = [*self.trainers.values()]
        steps = trainers[0].settings.steps
        while self.step < steps:
            with saved_if_stopped(save):
                move_together([trainer.window for trainer in trainers], self.step / steps)
                for trainer in trainers:
                    trainer.begin_stage()
            numbers = [trainer.step_that_fits() for trainer in trainers]
            due = self.step % REPORT_EVERY == 0 or self.step == steps
            plain = over_places([t.noted(own) for t, own in zip(trainers, numbers, strict=True)]) if due else {}
            with saved_if_stopped(save):
                progress(self.step, plain)
            if due:
                save()
        for trainer in trainers:
            trainer.end()

    def save(self, path: Path) -> None:
        """Write the whole state of the run, and of the maps where it is in their stream. Where latents are split, all
        of a team call this and the first process writes the whole; it can be resumed split in any way.

        Raises SaeError when the disk is full.
        """
        tensors = {_key(place, name): value for place, trainer in self.trainers.items()
                   for name, value in trainer.tensors().items()}
        if parallel.world()[0] == 0:
            states = json.dumps({place: trainer.state() for place, trainer in self.trainers.items()})
            tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            sums = {name: checksum(tensor) for name, tensor in tensors.items()}
            write_tensors(path, tensors, {METADATA_KEY: states, SUMS_KEY: _sealed(states, sums)})

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises SaeError for a damaged checkpoint, and for one of other places, another model, other prompts or settings.
        """
        try:
            with safe_open(path, framework="pt", device=str(next(iter(self.trainers.values())).device)) as file:
                self._restore(_whole(file), file, path)
        except SaeError:
            raise
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise SaeError(f"the checkpoint {path.name} in {path.parent} is damaged ({error}): delete it and train "
                           f"from the start") from error

    def _restore(self, states: Mapping[str, Any], file: Any, path: Path) -> None:
        if states.keys() != self.trainers.keys():
            raise SaeError(f"the checkpoint {path.name} is of another run (other places): choose another name for this "
                           f"one, or delete the checkpoint to train from the start")
        for place, trainer in self.trainers.items():
            trainer.refuse_other(states[place], path)
        for place, trainer in self.trainers.items():
            trainer.restore(states[place], lambda name, place=place: file.get_slice(_key(place, name)))


class Several(Run):
    """The trainers of several places, by hookpoint. They take as many steps, and their windows share one capacity."""

    def __init__(self, trainers: Mapping[str, "Trainer"]) -> None:
        self._trainers = dict(trainers)

    @property
    def trainers(self) -> Mapping[str, "Trainer"]:
        return self._trainers

    @property
    def step(self) -> int:
        return next(iter(self._trainers.values())).step

    @property
    def curve(self) -> list[dict[str, float]]:
        """The places' curves as one."""
        return [over_places(points) for points in zip(*(t.curve for t in self._trainers.values()), strict=True)]


def over_places(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means over places of what each says of a step, and the FVU of the worst."""
    if len(numbers) == 1:
        return dict(numbers[0])
    means = {name: sum(own[name] for own in numbers) / len(numbers) for name in numbers[0]}
    if "fvu" not in means:
        return means
    return means | {"worst fvu": max(own["fvu"] for own in numbers)}


def checksum(tensor: Tensor) -> int:
    """Of a tensor's bytes, kind and shape, wherever it is."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy(), zlib.crc32(f"{tensor.dtype} {[*tensor.shape]}".encode()))


def _sealed(states: str, sums: Mapping[str, int]) -> str:
    """What a checkpoint has to hold besides `states`, to be told from a damaged one."""
    return json.dumps({"states": zlib.crc32(states.encode()), "tensors": dict(sums)})


def _whole(file: Any) -> dict[str, Any]:
    """The states of a checkpoint.

    Raises ValueError when a bit of it is not as it was written.
    """
    metadata = file.metadata()
    sums = {name: checksum(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if json.loads(metadata[SUMS_KEY]) != json.loads(_sealed(metadata[METADATA_KEY], sums)):
        raise ValueError("its checksums are others")
    return json.loads(metadata[METADATA_KEY])


def _key(place: str, name: str) -> str:
    return f"{place}:{name}" if place else name


class saved_if_stopped:
    """Whatever interrupts the block is passed on after a save."""

    def __init__(self, save: Callable[..., None]) -> None:
        self.save = save

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self.save(now=True)

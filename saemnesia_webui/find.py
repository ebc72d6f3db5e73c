"""*Find a concept*: words in, a file of models/sae out, as *Erase Words* makes it in ComfyUI."""
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch

from sae_models import SaeError, hookpoint, parse
from sae_models.adapter import LoadedSae
from sae_models.concepts import mentioned
from sae_models.learning import places
from sae_models.learning import words as wanted
from sae_models.learning.fingerprint import fingerprint
from sae_models.learning.painting import Painting
from sae_models.learning.prompts import understood
from sae_models.learning.search import found
from sae_models.made_on import made_of

from . import files, host
from .job import as_sentence
from .model import family_of, original_weights, unet_of
from .painting import Painter
from .settings import checked

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Wish:
    """What to find. told_from: more things that must stay; side: of the pictures in pixels, 0 for what suits the
    model; cfg: guidance."""
    words: str = ""
    told_from: str = ""
    pictures: int = wanted.PICTURES
    side: int = 0
    cfg: float = Painting.cfg

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Wish":
        """Of an API user, by name.

        Raises SaeError for a name or value that makes no sense.
        """
        return cls(**checked(given, asdict(cls())))

    @classmethod
    def typed(cls, words: str, told_from: str, pictures: float | None, side: float | None, cfg: float | None) -> "Wish":
        """Of the sidebar's fields; a number that was cleared is the usual one."""
        usual = cls()
        return cls(words, told_from, int(usual.pictures if pictures is None else pictures),
                   int(usual.side if side is None else side), float(usual.cfg if cfg is None else cfg))

    def names(self) -> list[str]:
        """Raises SaeError for words that cannot be read, and numbers out of range."""
        if self.pictures < wanted.AT_ONCE or self.side % 8 or self.side < 0 or self.cfg < 1:
            raise SaeError(f"expected at least {wanted.AT_ONCE} pictures, a side that is a multiple of 8 and a "
                           f"guidance of 1 or more, got {self.pictures}, {self.side} and {self.cfg:g}")
        return [choice.name for choice in mentioned(parse(self.words))]


@dataclass(frozen=True)
class Found:
    """file: its name in models/sae; said: a line each word; seconds: that finding took, 0 when all were known."""
    file: str
    names: list[str]
    said: list[str]
    seconds: float
    sae: LoadedSae

    def as_json(self) -> dict[str, Any]:
        concepts = [self.sae.find(name) for name in self.names]
        return {"file": self.file, "seconds": round(self.seconds, 1),
                "concepts": [{"name": concept.name, "kind": concept.kind, **(concept.measured or {})}
                             for concept in concepts]}


@dataclass
class Progress:
    """How far a search is, in sampling steps. about: what is looked for, in words."""
    text: str = "waiting for the host's queue"
    about: str = ""
    steps: int = 0
    done: int = 0
    painted: int = 0
    began: float = 0.0

    def begin(self, about: str, steps: int) -> None:
        self.about, self.steps, self.began = about, steps, time.monotonic()

    def __call__(self, painted: bool) -> None:
        self.done += 1
        self.painted += painted
        left = (time.monotonic() - self.began) / max(1, self.painted) * (self.steps - self.done)
        self.goes_on(f"painting to learn from, step {self.done} of {self.steps}, about {in_words(left)} left")

    def goes_on(self, doing: str) -> None:
        self.say(f"{self.about}: {doing}")

    def say(self, text: str) -> None:
        self.text = text
        host.say(text)

    @property
    def share(self) -> float:
        return self.done / self.steps if self.steps else 0.0


class Finder:
    """Finds words on the host's checkpoint, one job of the host at a time. before: called when a job begins."""

    def __init__(self, models: Path, before: Callable[[], None]) -> None:
        self.models, self.before = models, before
        self._painter: Painter | None = None

    def evaluation(self, params: Any) -> None:
        """The host is about to evaluate the model."""
        if self._painter is not None:
            self._painter.evaluation(params)

    def find(self, wish: Wish, progress: Progress | None = None) -> Found:
        """Find what the checkpoint's file does not have yet, or has from less.

        Raises SaeError for a slip, where there is no UNet to learn from, and when it was stopped.
        """
        names, progress = wish.names(), progress or Progress()
        with host.job():
            try:
                self.before()
                return self._found(wish, names, progress)
            except Exception as error:
                raise as_sentence(error) from error

    def _found(self, wish: Wish, names: list[str], progress: Progress) -> Found:
        progress.say("reading the checkpoint")
        model = host.model()
        unet, began = unet_of(model), time.monotonic()
        family = family_of(hookpoint.find(unet, places.places(unet)[0]))
        out = self.models / files.FOLDER / (
            wanted.file_name(host.checkpoint_name(), fingerprint(original_weights(model))) + ".safetensors")
        missing = wanted.missing(wish.words, wanted.known(out), wish.told_from, wish.pictures)
        if missing:
            painter = Painter(model, wanted.painting(family, wish.side, wish.cfg), progress, progress.goes_on)
            what = wanted.search(missing, wish.told_from, painter, wish.pictures)
            made_on, of = PurePath(host.checkpoint_name()).stem, made_of(original_weights(model))
            headers = [replace(header, made_on=made_on, made_of=of) for header in places.headers(unet, family)]
            self._learn(replace(painter, painting=what.lesson.painting), what, out, headers, progress)
        seconds = time.monotonic() - began if missing else 0.0
        sae = LoadedSae.read(out.name, out)
        took = dict.fromkeys((subject.name.casefold() for subject in missing), seconds)
        return Found(out.name, names, [wanted.report(sae, name, took) for name in names], seconds, sae)

    def _learn(self, painter: Painter, what: Any, out: Path, headers: list, progress: Progress) -> None:
        painter.read([min(what.texts, key=len), max(what.texts, key=len)])  # refused before anything is painted
        host.expect(what.batches)
        progress.begin(understood(what.wanted), what.batches * painter.painting.steps)
        out.parent.mkdir(parents=True, exist_ok=True)
        with self._listening(painter), torch.no_grad():
            found(painter, what, out, headers)

    @contextmanager
    def _listening(self, painter: Painter) -> Iterator[None]:
        self._painter = painter
        try:
            yield
        finally:
            self._painter = None

    def watched(self, wish: Wish) -> Iterator[Progress | Found]:
        """The same, with the progress now and then, and in the end what was found. Raises as `find` does."""
        progress, pool = Progress(), ThreadPoolExecutor(1, "saemnesia-find")
        running: Future = pool.submit(self.find, wish, progress)
        pool.shutdown(wait=False)  # whoever leaves the page does not wait for the search, which goes on
        while not running.done():
            yield progress
            wait_for([running], LOOK_SECONDS)
        yield running.result()


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"

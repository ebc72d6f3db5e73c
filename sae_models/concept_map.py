"""Where concepts are in a picture: what their neurons do at the places of the model, laid over the picture as a map.

A neuron fires, token by token, where the model hears its concept; a token is a square of the picture. Divided by what
the neuron does on average in pictures that show the concept, the maps of all places are alike in scale: they are
resized to the latents and averaged. DAAM (arXiv 2210.04885) averages attention to a word in the same way. What fires
says how high a map is, what is above zero its shape: below its threshold a token does not tell whether the concept is
there, but where more of it is.
"""
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .adapter import Block, LoadedSae, shown
from .concepts import parse
from .erasure import Edit, Erasure
from .errors import SaeError
from .formats import read_rows_at

MOST = 12
"""Concepts shown where none is written: the strongest."""
HEARD = 1.0
"""A concept is in the picture where its map is anywhere as high as it is on average in pictures that show it. On
MiniCanvas: at least 1.2 where the prompt says it, at most 0.6 where it does not."""
SHADE = 0.6
"""How bright the picture below the colours is, in grey."""
COLOURS = ((0.0, 0.0, 0.3), (0.3, 0.0, 0.6), (0.8, 0.15, 0.4), (1.0, 0.55, 0.1), (1.0, 1.0, 0.5))
"""From none to most, evenly spaced."""


def names_of(sae: LoadedSae, text: str) -> list[str]:
    """The names of the concepts that a text as *Erase* takes it asks for; all of the file for an empty one.

    Raises SaeError for an unknown concept, and where an empty text is to mean all of a file without names.
    """
    if text.strip():
        return [sae.find(choice.name).name if not choice.name.startswith("#") else choice.name
                for choice in parse(text)]
    if not sae.concepts:
        raise SaeError(f"{sae.name} has no concept names, so 'concepts' cannot be empty: write a latent's number such "
                       f"as '#12'")
    return [concept.name for concept in sae.concepts]


def readers(sae: LoadedSae, names: Sequence[str]) -> dict[Block, Erasure]:
    """What reads the concepts' neurons at each place that has some, with nothing to change there.

    Raises SaeError for a damaged file.
    """
    places = sae.choose(names)
    at = {sae.find(name).name.casefold(): name for name in names}
    found = {}
    for (header, concepts), rows in zip(places, read_rows_at(sae.path, places), strict=True):
        whose = tuple(at[concept.name.casefold()] for concept in concepts for _ in concept.latents)
        found[Block.of(header)] = Erasure([Edit(whose, rows, torch.zeros(len(whose)))], header.residual)
    return found


def grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of a place's tokens, where latents of height x width were halved some times; None where so many
    tokens fill no such rectangle.

    >>> grid(6 * 9, 12, 17), grid(50, 12, 17)
    ((6, 9), None)
    """
    while height * width > tokens > 0 and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)
    return (height, width) if height * width == tokens else None


@dataclass
class Sight:
    """What the places showed in one pass over `pictures` pictures with latents of height x width.

    A pass may call a place several times, with parts of a prompt that were combined: the strongest counts.
    """
    readers: Mapping[Block, Erasure]
    pictures: int
    height: int
    width: int
    _seen: dict[Block, Tensor] = field(default_factory=dict, repr=False)

    def see(self, block: Block, x: Tensor, sigma: float, rows: int, x_in: Tensor | None = None) -> None:
        """Look at a place's output, a map [rows, d_in, H, W] or tokens [rows, N, d_in]; rows: those that the model was
        called with; x_in: as `Erasure`'s.

        What is not of the whole pictures, such as tiles of them, is left out.
        """
        tokens = x.shape[2] * x.shape[3] if x.ndim == 4 else x.shape[1]
        rectangle = grid(tokens, self.height, self.width)
        if rectangle is None or len(x) != rows or rows % self.pictures:
            return
        [edit] = self.readers[block].edits
        [fired_and_faint] = self.readers[block].activations(x, sigma, x_in=x_in)
        now = torch.stack([by_concept(edit, z.float(), sigma) for z in fired_and_faint])
        now = now.unflatten(1, (-1, self.pictures)).amax(1).unflatten(3, rectangle)
        self._seen[block] = now if block not in self._seen else torch.maximum(self._seen[block], now)

    def maps(self, names: Sequence[str]) -> Tensor:
        """float [C, pictures, height, width] of some concepts; 1 is what a concept does on average in a picture that
        shows it.

        Raises SaeError for concepts of which no place was seen.
        """
        told = {name for block in self._seen for name in self._names(block)}
        missing = [name for name in names if name not in told]
        if missing:
            raise SaeError(f"nothing can be said of where {shown(missing)} is: no place of the model with its neurons "
                           f"saw the whole picture. Use a prompt without areas, and the model without what cuts "
                           f"the picture into tiles or replaces its attention")
        return torch.stack([_as_high(*torch.stack([*self._of(name)]).mean(0)) for name in names])

    def _of(self, name: str) -> Iterator[Tensor]:
        """[2, pictures, height, width] of what fires, and of what is above zero, at every place that was seen and knows
        the concept."""
        for block, seen in self._seen.items():
            if name in self._names(block):
                own = seen[:, :, self._names(block).index(name)]
                yield resized(own.flatten(0, 1), self.height, self.width).unflatten(0, own.shape[:2])

    def _names(self, block: Block) -> list[str]:
        return concepts_of(self.readers[block].edits[0])


def _as_high(fired: Tensor, faint: Tensor) -> Tensor:
    """The second of two maps [n, h, w] with the highest point of the first."""
    high, own = (one.amax((1, 2), keepdim=True) for one in (fired, faint))
    return faint * (high / own.clamp_min(1e-6))


def concepts_of(edit: Edit) -> list[str]:
    return list(dict.fromkeys(edit.names))


def by_concept(edit: Edit, z: Tensor, sigma: float) -> Tensor:
    """[B, C, N] of activations [B, F, N]: each divided by its neuron's mean, and averaged over a concept's neurons.

    Of a neuron without statistics, such as one of an SAE without names, that is its mean in the very picture.
    """
    known = edit.rows.statistics.means.ne(1).any(1)
    mean = edit.rows.statistics.at(sigma, edit.rows.statistics.means)
    mean = torch.where(known.to(z.device)[:, None], mean.to(z)[:, None], z.mean(2, keepdim=True))
    share = torch.where(mean > 0, z / mean.clamp_min(1e-6), 0)
    own = torch.tensor([[name == concept for name in edit.names] for concept in concepts_of(edit)]).to(z)
    return torch.einsum("cf,bfn->bcn", own / own.sum(1, keepdim=True), share)


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """[n, h, w] to [n, height, width] on the CPU (not every device can), smoothly and never below 0."""
    return functional.interpolate(maps[:, None].cpu(), (height, width), mode="bicubic")[:, 0].clamp_min(0)


def shares(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [n, h, w] at the picture's size, each as a share of its highest point, 0..1; all 0 where that is lower than
    HEARD."""
    large = resized(maps, height, width)
    peak = large.amax((1, 2), keepdim=True)
    return torch.where(peak >= HEARD, large / peak.clamp_min(HEARD), 0)


def mask(share: Tensor, threshold: float) -> Tensor:
    """1 where `shares` reach the threshold, else 0; as soft as they are for a threshold of 0."""
    return (share >= threshold).float() if threshold > 0 else share


def heat(pictures: Tensor, share: Tensor) -> Tensor:
    """Pictures [n, H, W, 3] in 0..1, grey where a share [n, H, W] is 0 and in the colours of heat where it is more."""
    grey = pictures.mean(-1, keepdim=True).expand_as(pictures) * SHADE
    stops = torch.tensor(COLOURS, dtype=share.dtype, device=share.device)
    at = share.clamp(0, 1) * (len(COLOURS) - 1)
    low = at.floor().long().clamp_max(len(COLOURS) - 2)
    colour = torch.lerp(stops[low], stops[low + 1], (at - low)[..., None])
    return torch.lerp(grey, colour, 0.9 * share.clamp(0, 1)[..., None])


def strongest(names: Sequence[str], maps: Tensor) -> list[int]:
    """Which concepts of maps [C, ...] are heard anywhere, strongest first, at most MOST."""
    peaks = maps.flatten(1).amax(1).tolist()
    order = sorted(range(len(names)), key=lambda i: -peaks[i])
    return [i for i in order[:MOST] if peaks[i] >= HEARD]


def report(names: Sequence[str], share: Tensor, threshold: float) -> str:
    """For each concept of shares [C, pictures, H, W], how much of the picture its mask covers, in words."""
    return "\n".join(_line(name, one, threshold) for name, one in zip(names, share, strict=True))


def _line(name: str, share: Tensor, threshold: float) -> str:
    """
    >>> _line("cat", torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]]), 0.5), _line("dog", torch.zeros(1, 1, 2), 0.5)
    ('cat: 50% of the picture, not in picture 2', 'dog: not heard in the picture')
    """
    heard = [i for i, one in enumerate(share) if one.any()]
    if not heard:
        return f"{name}: not heard in the picture"
    covered = math.ceil(100 * float(mask(share[heard], threshold).mean()))
    missing = [str(i + 1) for i in range(len(share)) if i not in heard]
    return f"{name}: {covered}% of the picture" + (f", not in picture {', '.join(missing)}" if missing else "")

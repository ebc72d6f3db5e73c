"""The edit of one block's output: out = x + sum_f (z'_f - z_f) W_dec[f], over the chosen concepts' latents f only.

No full decode and no error term: where no concept fires, nothing is added. All edits of a block are computed from the
same unedited x, so their order does not matter. A swap takes one concept out and puts another in by the same formula,
with W_dec[f] less what is put there for each unit of z_f. SAEmnesia (arXiv 2509.21379) section 3.3 with the sign of
the error term corrected; *replace* is after PER (arXiv 2606.31699).

On a GPU nothing here waits for it: no value of a tensor is read, and nothing is copied to or from it twice.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .concepts import NEVER, Statistics
from .errors import SaeError
from .formats import Rows
from .nearest import replace_from_nearest

FAINTEST = 0.05
"""Of a concept's largest mean over noise levels: below that a mean says too little to be divided by."""
LOUD = 2.0
"""Times its threshold that what a row finds in a token has to be, to count for how strongly it fires: few tokens
without the concept pass the threshold, and hardly any of them twice of it."""
RIDGE = 1e-3
"""Keeps directions that are nearly one from being told apart."""
EVERY = 1e6
"""Above every noise level there is: hosts say so of a window that begins with sampling."""


class Actuator(str, Enum):  # noqa: UP042  (StrEnum needs Python 3.11; A1111 comes with 3.10)
    """What is done where a concept's latent fires with activation z and strength s.

    amount: s of the concept is gone, as *removed* counts it, s in -1..2: z' = sqrt(1 - s) z, for *removed* counts
    squares, and beyond 0..1 steer by -s. ablate: z' = (1 - s) z, s in 0..1. steer: z' = (1 + s) z, signed. replace:
    the whole token goes to the mean of the nearest tokens where no replaced concept fires, by share s; where every
    token fires, ablate. thorough: ablate, and then share s of what a token still has of W_dec's direction over the mean
    of where the prompt is not heard, in the other half of guidance, whether or not anything fires.
    """
    AMOUNT = "amount"
    ABLATE = "ablate"
    STEER = "steer"
    REPLACE = "replace"
    THOROUGH = "thorough"

    @property
    def default_strength(self) -> float:
        return -1.0 if self is Actuator.STEER else 1.0

    @property
    def strengths(self) -> tuple[float, float]:
        return {Actuator.STEER: (-100.0, 100.0), Actuator.AMOUNT: (-1.0, 2.0)}.get(self, (0.0, 1.0))

    def change(self, strengths: Tensor) -> Tensor:
        """z' - z for each unit of z, [F] of strengths [F]."""
        if self is Actuator.STEER:
            return strengths
        if self is Actuator.AMOUNT:
            between = (strengths >= 0) & (strengths <= 1)
            return torch.where(between, (1 - strengths).clamp(0, 1).sqrt() - 1, -strengths)
        return -strengths

    def check(self, label: str, strength: float, swaps: bool = False) -> None:
        """Raise SaeError for a strength that makes no sense; swaps: another concept is put in this one's place, no more
        and no less than all of it."""
        if swaps and self not in (Actuator.AMOUNT, Actuator.ABLATE):
            raise SaeError(f"'{label}' is done by the actuators amount and ablate, not by {self.value}: choose one of "
                           f"these, or write '{label.partition(' -> ')[0]}' alone")
        low, high = (0.0, 1.0) if swaps else self.strengths
        if not low <= strength <= high:
            raise SaeError(f"expected a strength of {low:g} to {high:g} for '{label}' with {self.value}, got "
                           f"{strength:g}")


@dataclass(frozen=True)
class Edit:
    """Some concepts' rows with one actuator.

    names: of each row's concept; strengths [F]; start_sigma >= end_sigma: the noise levels it acts in, both included;
    conditional_only: leave unconditional rows alone; into: the concept that is put where these rows, then all of one
    concept, fire; put: its rows, None where it has none at this place and nothing is put.
    """
    names: tuple[str, ...]
    rows: Rows
    strengths: Tensor
    actuator: Actuator = Actuator.ABLATE
    start_sigma: float = float("inf")
    end_sigma: float = 0.0
    conditional_only: bool = False
    into: str = ""
    put: Rows | None = None

    def __post_init__(self) -> None:
        for label, strength in zip(self.labels, self.strengths.tolist(), strict=True):
            self.actuator.check(label, strength, bool(self.into))
        if self.start_sigma < self.end_sigma:
            raise SaeError("expected the window's start before its end")
        if self.put and not all(rows.statistics.means.sum(0).max() > 0 for rows in (self.rows, self.put)):
            raise SaeError(f"'{self.labels[0]}' cannot be done: the file does not say how strongly they fire (their "
                           f"means are 0), so find both anew")

    @property
    def labels(self) -> tuple[str, ...]:
        """What is done with each row's concept, for people: its name, or `cat -> dog`."""
        return tuple(f"{name} -> {self.into}" for name in self.names) if self.into else self.names

    @property
    def gated(self) -> bool:
        """Whether it acts only where its rows fire."""
        return self.actuator is not Actuator.THOROUGH

    def active(self, sigma: float) -> bool:
        return self.end_sigma <= sigma <= self.start_sigma


class NoiseLevel:
    """The noise level of one model call where to read it would wait for a device: sigma, a tensor [] there."""

    def __init__(self, sigma: Tensor) -> None:
        self.sigma = sigma
        self._between: dict[tuple[float, ...], tuple[Tensor, Tensor, Tensor]] = {}
        self._within: dict[tuple[float, float], Tensor] = {}

    def threshold(self, edit: Edit, table: Tensor) -> Tensor:
        """[F] of a table [F, T], as `Statistics.at` has it; infinity outside of the edit's window."""
        found = self.at(edit.rows.statistics.sigmas, table)
        if edit.end_sigma <= 0 and edit.start_sigma >= EVERY:
            return found
        return torch.where(self._active(edit.end_sigma, edit.start_sigma), found, math.inf)

    def at(self, sigmas: tuple[float, ...], table: Tensor) -> Tensor:
        """[F] of a table [F, T], as `Statistics.at` has it."""
        if table.shape[1] == 1:
            return table[:, 0]
        low, high, share = self._at(sigmas)
        return torch.lerp(table.index_select(1, low)[:, 0], table.index_select(1, high)[:, 0], share)

    def _active(self, low: float, high: float) -> Tensor:
        """bool [], once a call."""
        if (low, high) not in self._within:
            self._within[low, high] = (self.sigma >= low) & (self.sigma <= high)
        return self._within[low, high]

    def _at(self, sigmas: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The columns [1] below and above, and the share of the way between them [1]: once a call."""
        if sigmas not in self._between:
            levels, here = _logs(sigmas, self.sigma.device), self.sigma.float().log()
            high = (levels < here).sum(0, keepdim=True).clamp(1, len(sigmas) - 1)
            low = high - 1
            below = levels.index_select(0, low)
            share = (here - below) / (levels.index_select(0, high) - below)
            self._between[sigmas] = low, high, share.clamp(0, 1)
        return self._between[sigmas]


@lru_cache(maxsize=64)
def _logs(sigmas: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(sigmas, dtype=torch.float64).log().float().to(device)


def alone() -> SaeError:
    """What to raise where there is nothing that *thorough* can compare with."""
    return SaeError("'thorough' compares the prompt with the negative one, for which the model is not asked here, or "
                    "not in time: set cfg above 1 (with long prompts in A1111 'Pad prompt/negative prompt' too), or "
                    "choose another actuator")


class Erased(NamedTuple):
    """The edited map, and per row of every edit [edits' F in order] whether it fired anywhere and was let, on the map's
    device; strengths [B, F]: as `Erasure.strengths` has them, where some may not fire."""
    out: Tensor
    fired: Tensor
    strengths: Tensor | None = None


class _Put(NamedTuple):
    """What a swap takes from its two concepts: means [F, T] of its own rows and the least sum of them that says enough;
    means [G, T] and W_dec [G, d_in] of what is put."""
    own: Tensor
    least: float
    means: Tensor
    W_dec: Tensor


class _Placed(NamedTuple):
    """One edit's tensors on the map's device and in its dtype; least [F]: how much of its threshold each row has to
    pass in any case, None for nothing."""
    W_enc: Tensor
    bias: Tensor
    W_dec: Tensor
    change: Tensor
    least: Tensor | None
    thresholds: Tensor
    put: _Put | None


class _Replaced(NamedTuple):
    """How far each token is to be replaced, [B, 1, N] in 0..1; and where all are, so that none can be, [B, 1, 1]."""
    share: Tensor
    stuck: Tensor


@dataclass
class Erasure:
    """All edits of one block. `residual`: the SAE encodes the block's output minus its input."""
    edits: Sequence[Edit]
    residual: bool = False
    _placed: dict = field(default_factory=dict, repr=False)
    _unsaid: dict = field(default_factory=dict, repr=False)

    def labels(self) -> list[str]:
        """What is done with each row's concept, for people."""
        return [label for edit in self.edits for label in edit.labels]

    def __call__(self, x: Tensor, sigma: float | NoiseLevel, conditional: Tensor | None = None,
                 x_in: Tensor | None = None, needed: Tensor | None = None) -> Erased:
        """Edit a map [B, d_in, H, W], or tokens [B, N, d_in]. x itself is left as it is.

        sigma: noise level of this call; conditional: bool [B], None when all rows are; x_in: the block's input, for
        a residual SAE; needed: [B, F], how much of its threshold each row of the edits has to pass to fire in each row
        of x, infinitely much where it may not; None: all of it. What strengthens or replaces has to pass all of it in
        any case: what is faint is not the concept's alone. Where no row is unconditional, *thorough* goes by the last
        call in which one was.

        Raises SaeError where *thorough* is not told which rows are conditional.
        """
        rows = sum(len(edit.names) for edit in self.edits)
        if not any(_may_act(edit, sigma) for edit in self.edits):
            silent = None if needed is None else x.new_zeros(len(x), rows)
            return Erased(x, torch.zeros(rows, dtype=torch.bool, device=x.device), silent)
        found, strengths = self._found(x, sigma, conditional, x_in), None
        if needed is None:
            acts = [_above(z, threshold) for z, threshold in found]
        else:
            strengths, sizes = _loud(found), [len(edit.names) for edit in self.edits]
            acts = [_above(z, threshold * _at_least(placed.least, part).to(threshold)[:, :, None])
                    for (z, threshold), part, placed in zip(found, needed.split(sizes, 1), self._on(x), strict=True)]
        thorough, fired = not all(edit.gated for edit in self.edits), _fired(acts)
        if x.device.type == "cpu" and not thorough and not fired.any():
            return Erased(x, fired, strengths)
        out = self._edited(x, acts, sigma)
        if thorough:
            out, acts = self._thorough(x, out, acts, sigma, conditional, x_in)
            fired = _fired(acts)
        return Erased(_laid_out_like(x, out.mT if x.ndim == 3 else out.view(x.shape)), fired, strengths)

    def strengths(self, x: Tensor, sigma: float | NoiseLevel, x_in: Tensor | None = None) -> Tensor:
        """Mean over the map of every edit's rows' z [B, F], where it is `LOUD`, whether or not the edit acts at this
        noise level."""
        return _loud(self._found(x, sigma, None, x_in, always=True))

    def activations(self, x: Tensor, sigma: float | NoiseLevel, conditional: Tensor | None = None,
                    x_in: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """z [B, F, N] of every edit's rows, zero where they do not fire or the edit does not act; and the same where
        they are above zero."""
        return [(_above(z, threshold), z.clamp_min(0)) for z, threshold in self._found(x, sigma, conditional, x_in)]

    def _found(self, x: Tensor, sigma: float | NoiseLevel, conditional: Tensor | None, x_in: Tensor | None,
               always: bool = False) -> list[tuple[Tensor, Tensor]]:
        """For every edit what its rows find in each token [B, F, N], and their thresholds [F, 1]."""
        columns = _columns(x) - _columns(x_in) if self.residual else _columns(x)
        found = []
        for edit, placed in zip(self.edits, self._on(x), strict=True):
            if not edit.gated or (not always and not _may_act(edit, sigma)):
                found.append((x.new_zeros(len(x), len(placed.bias), columns.shape[2]), x.new_zeros(1, 1)))
                continue
            z = _pre_activations(columns, placed, x.ndim == 3)
            if edit.conditional_only and conditional is not None:
                z = z * conditional.to(z)[:, None, None]
            found.append((z, _threshold(edit, placed, sigma, always).to(x)[:, None]))
        return found

    def _thorough(self, x: Tensor, out: Tensor, acts: list[Tensor], sigma: float | NoiseLevel,
                  conditional: Tensor | None, x_in: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """out, columns [B, d_in, N] of x with every other edit done, with the thorough ones done one after the other;
        and the activations of all."""
        acts, given = [*acts], _columns(x_in) if self.residual else 0
        for number, (edit, placed) in enumerate(zip(self.edits, self._on(x), strict=True)):
            if edit.gated or not _may_act(edit, sigma):
                continue
            before, left = (_pre_activations(part - given, placed, x.ndim == 3) for part in (_columns(x), out))
            over = (left - self._where_unsaid(number, before, conditional)[:, None]) * conditional.to(x)[:, None, None]
            acts[number] = _above(over, _threshold(edit, placed, sigma).to(x)[:, None])
            out = _plus(out, acts[number] * placed.change[:, None], placed.W_dec, x.ndim == 3)
        return out, acts

    def _where_unsaid(self, number: int, z: Tensor, conditional: Tensor | None) -> Tensor:
        """Mean [F] over the unconditional rows of what an edit's rows find, z [B, F, N]."""
        if conditional is None:
            raise alone()
        own = (~conditional).to(z)
        mean = (z.mean(2) * own[:, None]).sum(0) / own.sum().clamp_min(1)
        before = self._unsaid.get((number, z.device), mean)
        self._unsaid[number, z.device] = mean = torch.where(own.any(), mean, before).detach()
        return mean

    def _edited(self, x: Tensor, acts: list[Tensor], sigma: float) -> Tensor:
        """x as columns [B, d_in, N] with every edit done."""
        out = columns = _columns(x)
        replaced = self._replaced(columns, acts)
        for edit, placed, z in zip(self.edits, self._on(x), acts, strict=True):
            dz = z * placed.change[:, None]
            if replaced:
                dz = dz * (replaced.stuck if edit.actuator is Actuator.REPLACE else 1 - replaced.share)
            W_dec = placed.W_dec - _added(edit, placed.put, sigma).to(x) if placed.put else placed.W_dec
            out = _plus(out, dz, W_dec, x.ndim == 3)
        if replaced:
            for row, source, part in zip(out, columns, replaced.share[:, 0], strict=True):
                replace_from_nearest(row, source, part, _size(x))
        return out

    def _replaced(self, x: Tensor, acts: list[Tensor]) -> "_Replaced | None":
        """The strongest wish of the concepts that fire; None when no edit replaces."""
        wishes = [z.gt(0) * -placed.change[:, None]
                  for edit, placed, z in zip(self.edits, self._on(x), acts, strict=True)
                  if edit.actuator is Actuator.REPLACE]
        if not wishes:
            return None
        share = torch.cat([x.new_zeros(len(x), 1, x.shape[2]), *wishes], 1).amax(1, keepdim=True)
        stuck = share.gt(0).all(2, keepdim=True)
        return _Replaced(share.masked_fill(stuck, 0), stuck)

    def _on(self, x: Tensor) -> list[_Placed]:
        """Every edit's rows where x is, in x's dtype, copied once."""
        key = (x.device, x.dtype)
        if key not in self._placed:
            rows = [(*_weights(e), e.actuator.change(e.strengths)) for e in self.edits]
            self._placed[key] = [_Placed(*(t.to(x) for t in own), _least(e, own[-1], x.device),
                                         _thresholds(e).to(x.device), _put(e, x.device))
                                 for e, own in zip(self.edits, rows, strict=True)]
        return self._placed[key]


def _may_act(edit: Edit, sigma: float | NoiseLevel) -> bool:
    """Whether the edit acts, as far as that is known without waiting for a device."""
    return isinstance(sigma, NoiseLevel) or edit.active(sigma)


def _weights(edit: Edit) -> tuple[Tensor, Tensor, Tensor]:
    """W_enc [F, d_in], bias [F] and W_dec [F, d_in] that an edit works with: *thorough* reads each row's own direction,
    and takes it out without a change to the others'."""
    rows = edit.rows
    if edit.gated:
        return rows.W_enc, rows.bias, rows.W_dec
    along = functional.normalize(rows.W_dec.float(), dim=1)
    alike = along @ along.T + RIDGE * torch.eye(len(along))
    return along, torch.zeros_like(rows.bias), torch.linalg.solve(alike, along)


def _thresholds(edit: Edit) -> Tensor:
    """[F, T]; *thorough* asks only whether a row is for a noise level at all."""
    found = edit.rows.statistics.thresholds
    return found.clamp_min(0) if edit.gated else torch.where(found >= NEVER, found, 0)


def _least(edit: Edit, change: Tensor, device: torch.device) -> Tensor | None:
    least = torch.ones_like(change) if edit.actuator is Actuator.REPLACE else change.gt(0).float()
    return least.to(device) if least.any() else None


def _at_least(least: Tensor | None, needed: Tensor) -> Tensor:
    return needed if least is None else needed.maximum(least)


def _put(edit: Edit, device: torch.device) -> _Put | None:
    if edit.put is None:
        return None
    own = edit.rows.statistics.means
    return _Put(own.to(device), FAINTEST * float(own.sum(0).max()), edit.put.statistics.means.to(device),
                edit.put.W_dec.to(device))


def _added(edit: Edit, put: _Put, sigma: float | NoiseLevel) -> Tensor:
    """What a swap puts for each unit of activation, [d_in]: the put concept as it fires on average where it is said,
    when the edit's rows together fire as they do on average where theirs is."""
    usual = at(edit.rows.statistics, put.own, sigma).sum().clamp_min(put.least)
    return at(edit.put.statistics, put.means, sigma) @ put.W_dec / usual


def at(statistics: Statistics, table: Tensor, sigma: float | NoiseLevel) -> Tensor:
    """[F] of a table [F, T], as `Statistics.at` has it."""
    return sigma.at(statistics.sigmas, table) if isinstance(sigma, NoiseLevel) else statistics.at(sigma, table)


def _threshold(edit: Edit, placed: _Placed, sigma: float | NoiseLevel, always: bool = False) -> Tensor:
    """[F]"""
    if isinstance(sigma, NoiseLevel) and not always:
        return sigma.threshold(edit, placed.thresholds)
    return at(edit.rows.statistics, placed.thresholds, sigma)


def _fired(acts: Sequence[Tensor]) -> Tensor:
    """bool [F of all]"""
    return _together([z.amax((0, 2)) for z in acts]).gt(0)


def _above(z: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(z > threshold, z, 0)


def _loud(found: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Means over the map [B, F of all] of every edit's z [B, F, N], where it is so much above its threshold."""
    return _together([_above(z, LOUD * threshold).mean(2, dtype=torch.float32) for z, threshold in found], 1)


def _together(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _columns(x: Tensor) -> Tensor:
    """Tokens as columns, [B, d_in, N], of a map [B, d_in, H, W] or of tokens [B, N, d_in]."""
    return x.flatten(2) if x.ndim == 4 else x.mT


def _pre_activations(columns: Tensor, placed: _Placed, tokens: bool) -> Tensor:
    """[B, F, N] of columns [B, d_in, N]; those of tokens lie one after the other in memory, and are never copied."""
    if tokens:
        return functional.linear(columns.mT, placed.W_enc, placed.bias).mT
    return torch.matmul(placed.W_enc, columns) + placed.bias[:, None]


def _plus(columns: Tensor, dz: Tensor, W_dec: Tensor, tokens: bool) -> Tensor:
    """columns [B, d_in, N] + W_dec^T dz, of dz [B, F, N]."""
    if tokens:
        return torch.addmm(columns.mT.flatten(0, 1), dz.mT.flatten(0, 1), W_dec).view(columns.mT.shape).mT
    return torch.baddbmm(columns, W_dec.mT.expand(len(columns), -1, -1), dz)


def _laid_out_like(x: Tensor, out: Tensor) -> Tensor:
    """`out` with x's strides: the layers after this one round differently for another memory format."""
    return out if out.stride() == x.stride() else torch.empty_like(x).copy_(out)


def _size(x: Tensor) -> tuple[int, int]:
    """Height and width; tokens without a map lie on a line, one below the other."""
    return (x.shape[2], x.shape[3]) if x.ndim == 4 else (x.shape[1], 1)

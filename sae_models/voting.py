"""Whether a concept is there at all: its places tell together what each of them may get wrong.

Where a prompt does not say a concept, one or two of its places fire all the same, now and then strongly enough that
another picture is painted; where it does, nearly all of them fire. So the first call of a run is made once only to
look, unedited, and each concept's places vote:

    share = mean over the map of z, all of the concept's neurons at a place, where it is twice its threshold (`LOUD`)
            / what the mean of all z is where the concept is said
    vote  = mean over places of min(share, 1)^(1/3) >= BAR

By the root many places that fire weakly, as they do in a long prompt, count for more than one that fires strongly. A
concept that is voted in is erased wherever its neurons are above zero: what their thresholds tell, whether it is
there at all, is known by then, and they would leave what it adds to a prompt that names it after another. One that is
voted out does nothing in that run, unless a later call votes it in, which takes more (`LATER`): there are many of them,
and a picture that is half painted makes single places louder. That is also why a run which begins with a picture, or a
prompt that comes late in one, is looked at in noise, as if it were painted from the beginning.
Concepts at fewer than `QUORUM` places, and those of files that do not say how strongly they fire, are not voted on:
they act wherever they fire; nor is what is erased thoroughly.
"""
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from .adapter import Block
from .concepts import UNKNOWN, Statistics
from .erasure import Erasure, NoiseLevel, at

QUORUM = 3
"""Places from which on there is a vote."""
BAR, LATER = 0.2, 0.4
"""The vote from which on a concept is there: in the look at a run's beginning; in each call after that."""
VOTED_IN, UNASKED, OUT = 0.0, 1.0, math.inf
"""How much of its threshold a concept's row has to pass."""
NOISY = 0.25
"""A call's pictures are noise within that share of sampling."""


class Voting:
    """The votes of sampling runs. noisy: the noise level above which pictures are noise; owners: whose each row of a
    place's edits is, that of its label unless given."""

    def __init__(self, erasures: Mapping[Block, Erasure], noisy: float = 0.0,
                 owners: Mapping[Block, Sequence[Hashable]] | None = None) -> None:
        owners = owners or {block: erasure.labels() for block, erasure in erasures.items()}
        self.noisy, self.counts = noisy, {block: len(owners[block]) for block in erasures}
        parts = [edit.rows.statistics for erasure in erasures.values() for edit in erasure.edits]
        gated = [edit.gated for erasure in erasures.values() for edit in erasure.edits for _ in edit.names]
        rows = [(place, owner) for place, block in enumerate(erasures) for owner in owners[block]]
        rows = [(place, owner if asked else None) for (place, owner), asked in zip(rows, gated, strict=True)]
        told = [tells for part in parts for tells in (part.means.ne(UNKNOWN).any(1) & part.means.any(1)).tolist()]
        told = [tells and asked for tells, asked in zip(told, gated, strict=True)]
        places = Counter(owner for _, owner in {row for row, tells in zip(rows, told, strict=True) if tells})
        asked = [owner for owner, count in places.items() if count >= QUORUM]
        self.voters = voters = {owner: number for number, owner in enumerate(asked)}
        self.size = len(erasures), len(voters) + 1
        self.cells = torch.tensor([place * self.size[1] + voters.get(owner, len(voters)) for place, owner in rows])
        self.heard = torch.tensor([*(places[owner] for owner in voters), 1])
        self.usual, self._unasked = _joined(parts), any(owner not in voters for _, owner in rows)
        self._open: dict[Hashable, Tensor] = {}
        self._there: dict[torch.device, tuple[Tensor, ...]] = {}

    def forget(self) -> None:
        """A run begins."""
        self._open.clear()

    @property
    def begun(self) -> bool:
        """Whether this run has had a call."""
        return bool(self._open)

    def met(self, key: Hashable) -> bool:
        """Whether there is nothing to decide about a call any more: it had a like one in this run, or none is voted
        on."""
        return self.size[1] == 1 or key in self._open

    def begins(self, key: Hashable, rows: int, device: torch.device) -> bool:
        """Whether this call, the first one of its kind, is to be looked at before it is made. key: the same for calls
        whose rows mean the same."""
        if self.met(key):
            return False
        needed = torch.full((rows, self.size[1]), OUT, device=device)
        needed[:, -1] = UNASKED
        self._open[key] = needed
        return True

    def late(self, sigma: float | NoiseLevel) -> bool:
        """Whether a call's pictures are painted too far to be looked at: noise is then looked at in their place. Where
        the noise level is on a device, that waits for it."""
        return (float(sigma.sigma) if isinstance(sigma, NoiseLevel) else sigma) < self.noisy

    def count(self, key: Hashable, strengths: Mapping[Block, Tensor], sigma: float | NoiseLevel,
              look: bool = False) -> None:
        """Let in whom a call votes for; strengths: mean over the map of z, [B, F] of each place that ran; look:
        by `BAR`, and not by `LATER`. Where a place has other rows than the call, because something else
        arranges them, all are let in; where none ran there is no vote."""
        if not strengths:
            return
        if all(len(rows) == len(self._open[key]) for rows in strengths.values()):
            heard = self.votes(strengths, sigma) >= (BAR if look else LATER)
            heard[:, -1] = False  # of those nobody is asked about
            self._need(key, torch.where(heard, VOTED_IN, OUT))
        else:
            self.let_in(key, True)

    def let_in(self, key: Hashable, whom: Tensor | bool) -> None:
        """Without a vote; whom: all or none."""
        whom = torch.as_tensor(whom, device=self._open[key].device)
        self._need(key, torch.where(whom, UNASKED, OUT))

    def _need(self, key: Hashable, needed: Tensor) -> None:
        self._open[key] = torch.minimum(self._open[key].to(needed.device), needed)

    def votes(self, strengths: Mapping[Block, Tensor], sigma: float | NoiseLevel) -> Tensor:
        """[B, concepts] in 0..1: those of the owners that are voted on, in order, and one that says nothing; a place
        that did not run votes 0."""
        some = next(iter(strengths.values()))
        cells, heard, means = self._on(some.device)
        z = torch.cat([strengths[block] if block in strengths else some.new_zeros(len(some), count)
                       for block, count in self.counts.items()], 1)
        fired, usual = (self._by_owner(part, cells) for part in (z.float(), at(self.usual, means, sigma)[None]))
        return (fired / usual.clamp_min(1e-6)).clamp(0, 1).pow(1 / 3).sum(1) / heard

    def open(self, key: Hashable) -> dict[Block, Tensor] | None:
        """{place: how much of its threshold each row of its edits has to pass in each row of such a call, [B, F]}; None
        where it is all of it."""
        if self.size[1] == 1:
            return None
        cells = self._on(self._open[key].device)[0]
        rows = self._open[key].index_select(1, cells % self.size[1])
        return dict(zip(self.counts, rows.split([*self.counts.values()], 1), strict=True))

    def idle(self, key: Hashable) -> bool:
        """Whether no concept is there, so that the look's own outcome is the call's; waits for a GPU."""
        needed = self._open[key]
        return not bool((needed if self._unasked else needed[:, :-1]).lt(OUT).any())

    def _by_owner(self, rows: Tensor, cells: Tensor) -> Tensor:
        """Sums of rows [B, all F] over a concept's rows at each place: [B, places, concepts]."""
        places, owners = self.size
        return rows.new_zeros(len(rows), places * owners).index_add(1, cells, rows).view(-1, places, owners)

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._there:
            self._there[device] = tuple(part.to(device) for part in (self.cells, self.heard, self.usual.means))
        return self._there[device]


def noise(shape: Sequence[int]) -> Tensor:
    """What is looked at in place of pictures that are painted too far: the same every time, and none of the host's
    random numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def random_state(device: torch.device) -> Callable[[], None]:
    """What sets the random numbers of the CPU and of a GPU back to where they are now."""
    states = [(torch.set_rng_state, torch.get_rng_state())]
    if device.type == "cuda":
        states.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))

    def back() -> None:
        for put, state in states:
            put(state)
    return back


def rows_of(opened: Mapping[Block, Tensor] | None, block: Block, output: Tensor) -> Tensor | None:
    """What of `Voting.open` is for a place that puts out so many rows."""
    rows = opened and opened[block]
    return rows if rows is not None and len(rows) == len(output) else None


def _joined(parts: Sequence[Statistics]) -> Statistics:
    """The rows of all, at every noise level that one of them has."""
    sigmas = tuple(sorted({sigma for part in parts for sigma in part.sigmas}))
    means = torch.cat([torch.stack([part.at(sigma, part.means) for sigma in sigmas], 1) for part in parts])
    return Statistics(sigmas, means, means)

"""What an eraser does, and whom its places let in; on a stand-in for a model, whose places put out how strongly a
prompt says cat, and nothing else."""
from dataclasses import dataclass

import pytest
import torch

from sae_models.adapter import Block
from sae_models.concepts import Concept, Statistics
from sae_models.formats import Rows
from sae_models.learning import effects
from sae_models.learning.painting import Painting
from sae_models.table import Table

PLACES = [Block(f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn2", False) for i in range(4)]
SIGMA = 5.0


@dataclass
class Step:
    t: torch.Tensor
    asked: list
    loud: dict
    known: set

    waits: list

    @property
    def sigma(self):
        """On a GPU, to read it is to wait."""
        self.waits.append(self.t)
        return SIGMA

    def predict(self, texts, taps=None):
        assert self.known.issuperset(texts)  # read before the picture was begun
        self.asked.append(list(texts))
        out = torch.tensor([self.loud[text] for text in texts])[:, None, None].expand(-1, 3, 2)
        return torch.stack([tap(out, None) for tap in taps.values()]).mean(0) if taps else out


class Painter:
    def __init__(self, loud, batch):
        self.painting, self.loud, self.asked, self.painted = Painting(batch=batch, steps=8), loud, [], []
        self.waits: list[torch.Tensor] = []
        self.known: set[str] = set()

    def read(self, texts):
        self.known.update(texts)

    def paint(self, texts, generator, kept, look):
        self.painted.append(list(texts))
        for step in kept:
            look(Step(torch.full((len(texts),), SIGMA - step / 10), self.asked, self.loud, frozenset(self.known),
                      self.waits))


def eraser(count=4):
    """A neuron at each place that takes out all that is said; it is 1 where the concept is said."""
    rows = Rows(torch.tensor([[1.0, 0.0]]), torch.zeros(1), torch.tensor([[1.0, 1.0]]),
                Statistics((1.0,), torch.zeros(1, 1), torch.full((1, 1), 0.999)))
    return effects.ablating(PLACES[:count], [Table((Concept("cat", (0,)),), rows)] * count)


def words(said, others):
    """{text: how loud}, prompts that say it with the same without, and prompts that do not."""
    pairs = [(f"cat {i}", f"nothing {i}") for i in range(len(said))]
    loud = {f"cat {i}": z for i, z in enumerate(said)} | {f"nothing {i}": 0.0 for i in range(len(said))}
    return loud | {f"dog {i}": z for i, z in enumerate(others)}, pairs, [f"dog {i}" for i in range(len(others))]


@pytest.mark.parametrize(("other", "places", "touched"), [(0.005, 4, False), (0.07, 4, True), (0.005, 2, True)])
def test_others_that_the_places_vote_out_are_not_touched(other, places, touched):
    loud, pairs, rest = words([1.0, 0.9], [other])
    tried = effects.effects(Painter(loud, 2), {0: eraser(places)}, pairs, rest)[0]
    checked = effects.effects(Painter(loud, 2), {0: eraser(places)}, pairs, rest, effects.CHECK)[0]
    for effect in (tried, checked):
        assert (effect.touched > 1e-6) is touched and effect.removed == pytest.approx(1)


def test_the_noise_level_is_read_once_a_call_and_not_at_every_place():
    loud, pairs, rest = words([1.0, 0.9], [0.005])
    painter = Painter(loud, 2)
    effects.effects(painter, {0: eraser()}, pairs, rest)
    assert 0 < len(painter.waits) <= len(painter.asked)

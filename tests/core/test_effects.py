"""What an eraser does, and the bar that it votes by; on a stand-in for a model, whose places put out how strongly a
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

    sigma = SIGMA

    def predict(self, texts, taps=None):
        assert self.known.issuperset(texts)  # read before the picture was begun
        self.asked.append(list(texts))
        out = torch.tensor([self.loud[text] for text in texts])[:, None, None].expand(-1, 3, 2)
        return torch.stack([tap(out, None) for tap in taps.values()]).mean(0) if taps else out


class Painter:
    def __init__(self, loud, batch):
        self.painting, self.loud, self.asked, self.painted = Painting(batch=batch, steps=8), loud, [], []
        self.known: set[str] = set()

    def read(self, texts):
        self.known.update(texts)

    def paint(self, texts, generator, kept, look):
        self.painted.append(list(texts))
        for step in kept:
            look(Step(torch.full((len(texts),), SIGMA - step / 10), self.asked, self.loud, frozenset(self.known)))


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


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize(("said", "wanted"), [
    ([0.125] * 32, 0.9 * 0.5),
    ([0.064] + 63 * [1.0], 0.5),
    ([0.064] * 2 + 62 * [1.0], 0.9 * 0.4),
    ([0.5] * 32, 0.5),
    ([0.02] * 32, 0.35),
])
def test_the_bar_lies_a_little_below_what_nearly_all_prompts_that_say_it_reach(batch, said, wanted):
    loud, pairs, rest = words(said, [0.0])
    painter = Painter(loud, batch)
    _, bar = effects.checked(painter, eraser(), pairs, rest, True)
    assert bar == pytest.approx(wanted, abs=2e-3)
    assert all(len(asked) == batch for asked in painter.asked) and len(painter.painted) == 1


def test_with_its_own_bar_it_touches_no_prompt_that_a_lower_one_would_let_in():
    loud, pairs, rest = words([1.0, 0.9], [0.07])
    assert effects.effects(Painter(loud, 2), {0: eraser()}, pairs, rest)[0].touched > 1e-4
    effect, bar = effects.checked(Painter(loud, 2), eraser(), pairs, rest, True)
    assert bar == 0.5 and effect.touched == 0 and effect.removed == pytest.approx(1)


def test_who_does_not_vote_has_no_bar_and_is_asked_nothing_beside():
    loud, pairs, rest = words([1.0], [0.0])
    painter = Painter(loud, 1)
    effect, bar = effects.checked(painter, eraser(2), pairs, rest, True)
    assert bar is None and effect.removed == pytest.approx(1)
    voting = Painter(loud, 1)
    effects.checked(voting, eraser(), pairs, rest, True)
    assert len(voting.asked) == len(painter.asked) + effects.ASKED


def test_prompts_that_nobody_wrote_say_nothing_of_how_loudly_it_is_heard_in_others():
    loud, pairs, rest = words([1.0, 0.9], [0.0])
    asked, plain = Painter(loud, 2), Painter(loud, 2)
    effects.checked(asked, eraser(), pairs, rest, True)
    assert effects.checked(plain, eraser(), pairs, rest, False)[1] is None
    assert len(asked.asked) == len(plain.asked) + effects.ASKED / 2

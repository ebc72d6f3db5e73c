"""Which prompts a chunk asks the model for, with a painter that only notes them."""
from dataclasses import dataclass, field

import torch

from sae_models.adapter import Block
from sae_models.learning.collect import Collector
from sae_models.learning.painting import Painting
from sae_models.learning.prompts import expand, parse_subjects

BLOCK = Block("mid_block.attentions.0.transformer_blocks.0.attn2", False)
PROMPTS = expand("a {object}\na {object} and a {object}", parse_subjects("cat, dog, bear, fox"))
TEXTS = {prompt.text: prompt for prompt in PROMPTS}


@dataclass
class Noting:
    """A painter, and each step that it shows: its `predict` notes the texts, which were read before it painted."""
    painting: Painting = Painting(batch=16, steps=12, steps_kept=8)  # noqa: RUF009
    asked: list = field(default_factory=list)
    painted: list = field(default_factory=list)
    known: set = field(default_factory=set)
    paints: bool = False
    t: torch.Tensor = torch.ones(16)  # noqa: RUF009
    sigma = 1.0

    def read(self, texts):
        assert not self.paints
        self.known.update(texts)

    def paint(self, texts, generator, kept, look):
        self.painted.append(list(texts))
        self.paints = True
        for _ in kept:
            look(self)
        self.paints = False

    def predict(self, texts, taps):
        assert self.known.issuperset(texts)
        self.asked.append(list(texts))
        for tap in taps.values():
            tap(torch.randn(len(texts), 9, 4), None)


def asked(wanted: int) -> list[tuple[str, str]]:
    """(prompt, what was asked in its place) of some chunks."""
    painter = Noting()
    collector = Collector(painter, PROMPTS, 4, [BLOCK], wanted=wanted)
    for number in range(4):
        collector.chunk(number)
    return [pair for first, second in zip(painter.asked[::2], painter.asked[1::2], strict=True)
            for pair in zip(first, second, strict=True)]


def test_what_is_to_be_found_is_left_out_wherever_it_is_said():
    said = [(TEXTS[text], other) for text, other in asked(wanted=1) if 0 in TEXTS[text].said]
    assert len(said) > 20 and all(other == prompt.without[prompt.said.index(0)] for prompt, other in said)


def test_elsewhere_other_prompts_show_what_it_must_be_told_from():
    other = {second for text, second in asked(wanted=1) if 0 not in TEXTS[text].said}
    assert len(other) > 4 and not any(0 in TEXTS[text].said for text in other)


def test_where_all_is_to_be_learned_any_concept_is_left_out():
    pairs = [(TEXTS[text], other) for text, other in asked(wanted=0)]
    assert all(other in prompt.without for prompt, other in pairs)
    assert {prompt.said[prompt.without.index(other)] for prompt, other in pairs} == {0, 1, 2, 3}


def test_few_pictures_ask_with_many_prompts_where_something_is_to_be_found():
    painter = Noting()
    Collector(painter, PROMPTS, 4, [BLOCK], wanted=1).chunk(0)
    asked = painter.asked[::2]
    assert painter.painted[0] not in asked and all(asked.count(texts) == 1 for texts in asked)

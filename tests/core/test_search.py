"""What finding a word keeps in memory: no more than a machine has, nothing twice; and what places learn that vote."""
from types import SimpleNamespace

import pytest
import torch
from made_maps import CONCEPTS, SUBJECTS, directions, make_maps

from sae_models import Header, SaeConfig
from sae_models.adapter import Block
from sae_models.errors import SaeError
from sae_models.learning import search, words
from sae_models.learning.lesson import Lesson
from sae_models.learning.maps import Maps
from sae_models.learning.measuring import Effect
from sae_models.learning.prompts import parse_subjects
from sae_models.voting import QUORUM

SD15 = [320] * 5 + [640] * 5 + [1280] * 6
SDXL = [640] * 10 + [1280] * 60
MINICANVAS = [256, 384, 384, 384, 384, 256]


class Reader:
    """A painter that only reads."""
    painting = words.painting("sdxl")

    def vectors(self, texts):
        return torch.eye(len(texts))


def lesson(pictures: int) -> Lesson:
    return words.search(parse_subjects("cat"), "", Reader(), pictures).lesson


def kept(widths: list[int], pictures: int = words.PICTURES) -> int:
    headers = [Header(SaeConfig(width, 1, 1), f"up_blocks.0.attentions.{i}") for i, width in enumerate(widths)]
    return search.tokens_kept(lesson(pictures), headers)


@pytest.mark.parametrize(("widths", "wanted"), [(MINICANVAS, 128), (SD15, 128), (SDXL, 50)])
def test_what_is_kept_of_the_places_of_a_model_fits_in_4_gb(widths, wanted):
    assert kept(widths) == wanted
    looks = lesson(words.PICTURES).pictures * lesson(words.PICTURES).painting.steps_kept
    assert 2 * 2 * looks * sum(widths) * kept(widths) <= 2 ** 32
    assert kept(widths, 1000) < wanted


def test_the_maps_of_all_chunks_are_held_once():
    block = Block("mid_block.attentions.0.transformer_blocks.0.attn2", False)

    def maps(seed: int) -> Maps:
        tokens, without = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed)).half()
        return Maps(tokens, without, torch.zeros(3, dtype=torch.long), torch.ones(3, 2, dtype=torch.bool),
                    torch.full((3,), float(seed)))
    chunks = {i: {block: maps(i)} for i in range(3)}
    whole = search._joined(chunks, 3, block)
    assert whole.sigmas.tolist() == [0.0] * 3 + [1.0] * 3 + [2.0] * 3
    storage = whole.tokens.untyped_storage().data_ptr()
    for i, parts in chunks.items():
        assert torch.equal(parts[block].tokens, maps(i).tokens) and torch.equal(parts[block].without, maps(i).without)
        assert parts[block].tokens.untyped_storage().data_ptr() == storage
    assert torch.equal(search._joined(chunks, 3, block).tokens, whole.tokens)  # gone on with after an interrupt


def alike(seed: int) -> Maps:
    """The cat adds a little to some tokens and much to others; a dog adds some of the same."""
    world, maps = directions(), make_maps(seed)
    amount = 3 * torch.rand(*maps.tokens.shape[:2], 1, generator=torch.Generator().manual_seed(seed))
    cat, dog = ((maps.unsaid == i)[:, None, None] for i in (0, 1))
    tokens = maps.without.float() + (cat * amount + dog * 1.2) * world[-1]
    without = maps.without.float() + dog * 1.2 * world[-1]
    labels = torch.nn.functional.one_hot(maps.unsaid, CONCEPTS).bool()
    return Maps(tokens.half(), without.half(), maps.unsaid, labels, maps.sigmas)


def test_places_that_vote_carry_more_of_what_is_hard_to_tell_than_one_alone():
    painter = SimpleNamespace(make_room=lambda room: torch.device("cpu"), going_on=lambda doing: None)
    maps = alike(2).to("cpu")
    shown = maps.unsaid == 0

    def left(places: int) -> float:
        [table] = search.own_tables(painter, [alike(1)] * places, SimpleNamespace(wanted=SUBJECTS[:1]), [1])[1][:1]
        z = (maps.tokens[shown] @ table.rows.W_enc.T + table.rows.bias).relu()
        difference = (maps.tokens - maps.without)[shown]
        return float((difference - z @ table.rows.W_dec).square().sum() / difference.square().sum())
    assert left(QUORUM) < 0.7 * left(QUORUM - 1)


def test_a_concept_that_hardly_stands_out_is_heard_by_lower_thresholds(monkeypatch):
    """Where it helps, by what is measured; one that is removed well keeps its own."""
    [part] = search.own_tables(SimpleNamespace(make_room=lambda room: torch.device("cpu"), going_on=lambda doing: None),
                               [alike(1)] * 1, SimpleNamespace(wanted=SUBJECTS[:1]), [1])[1]
    own, blocks = part.rows.statistics.thresholds, [object()] * QUORUM

    def heard(removed: dict[float, float]) -> tuple[float, float]:
        """(how much of its thresholds it keeps, what is removed); removed: by that share."""
        share = lambda parts: round(float((parts[0].rows.statistics.thresholds / own).mean()), 2)  # noqa: E731
        measured = {by: Effect(1 - much, 0.0, 1.0) for by, much in removed.items()}
        monkeypatch.setattr(search.effects, "ablating", lambda blocks, parts: share(parts))
        monkeypatch.setattr(search.effects, "effects", lambda painter, erasers, batch: {
            key: measured[eraser] for key, eraser in erasers.items()})
        parts, effect = search._heard_by(None, blocks, [part] * QUORUM, measured[1.0], ())
        return share(parts), round(effect.removed, 2)
    assert heard({1.0: 0.9}) == (1.0, 0.9)
    assert heard({1.0: 0.1, 0.5: 0.6}) == (0.5, 0.6)
    assert heard({1.0: 0.1, 0.5: 0.05}) == (1.0, 0.1)


class Counting:
    """A painter of four places, which counts how often its model is called with a batch of pictures."""
    painting, calls = words.painting("sd15"), 0
    t, sigma = torch.ones(words.AT_ONCE), 1.0

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def vectors(self, texts):
        return torch.eye(len(texts))

    def identity(self):
        return "counting"

    def read(self, texts): ...

    def going_on(self, doing): ...

    def make_room(self, size):
        return torch.device("cpu")

    def paint(self, texts, generator, kept, look):
        for step in range(self.painting.steps):
            self.calls += 2  # with guidance
            if step in kept:
                look(self)

    def predict(self, texts, taps=None):
        self.calls += 1
        said = torch.tensor([["cat" in text] for text in texts]).float()[:, :, None]
        out = torch.randn(len(texts), 9, 4, generator=self.generator) + 3 * said
        return torch.stack([tap(out, None) for tap in (taps or {}).values()]).mean(0) if taps else out


class Breaking(Counting):
    """Its places are heard as ever, and what it predicts is no number where concepts are measured."""
    learned = False

    def identity(self):
        return "breaking"

    def make_room(self, size):
        self.learned = True
        return super().make_room(size)

    def predict(self, texts, taps=None):
        return super().predict(texts, taps) * (torch.nan if self.learned else 1.0)


def test_a_model_that_predicts_no_numbers_is_refused(tmp_path):
    headers = [Header(SaeConfig(4, 1, 1), f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn2", "sd15")
               for i in range(4)]
    painter, out = Breaking(), tmp_path / "a.safetensors"
    what = words.search(parse_subjects("cat"), "", painter)
    painter.painting = what.lesson.painting
    with pytest.raises(SaeError, match="nothing can be learned from this model: it computes values that are no num"):
        search.found(painter, what, out, headers)
    assert not out.exists()


def test_finding_a_word_takes_at_most_600_calls_of_the_model(tmp_path):
    painter = Counting()
    headers = [Header(SaeConfig(4, 1, 1), f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn2", "sd15")
               for i in range(4)]
    what, out = words.search(parse_subjects("cat"), "", painter), tmp_path / "a.safetensors"
    painter.painting = what.lesson.painting
    [said] = search.found(painter, what, out, headers)
    assert said.startswith("cat: ") and 450 < painter.calls <= 600

"""Maps of where concepts are, from tokens whose content is known."""
import doctest

import pytest
import torch

from sae_models import Edit, Erasure, Rows, SaeError, Statistics, concept_map
from sae_models.adapter import Block
from sae_models.concept_map import Sight

PLACE, COARSE, FLAT = (Block(name, False) for name in ("place", "coarse", "flat"))
WIDTH = 4


def reader(*names: str, mean: float = 2.0, threshold: float = 0.5) -> Erasure:
    """Neuron i of a place is the i-th number of a token."""
    rows = torch.eye(WIDTH)[:len(names)]
    table = torch.ones(len(names), 1)
    return Erasure([Edit(names, Rows(rows, torch.zeros(len(names)), rows, Statistics((1.0,), table * threshold,
                                                                                     table * mean)),
                         torch.zeros(len(names)))])


def tokens(height: int, width: int, marked: dict[tuple[int, int], tuple[float, ...]], rows: int = 1) -> torch.Tensor:
    """[rows, N, WIDTH], all 0 but for the tokens at some (row, column)."""
    x = torch.zeros(rows, height, width, WIDTH)
    for (y, x_), values in marked.items():
        x[:, y, x_, :len(values)] = torch.tensor(values)
    return x.flatten(1, 2)


def highest(one: torch.Tensor) -> tuple[int, int]:
    return divmod(int(one.argmax()), one.shape[1])


def test_a_concept_lies_where_its_neuron_fires_in_a_picture_that_is_no_square_nor_even():
    sight = Sight({PLACE: reader("cat", "dog"), COARSE: reader("cat", mean=4.0)}, 1, 13, 9)
    sight.see(PLACE, tokens(13, 9, {(2, 7): (6.0,), (11, 1): (0, 6.0)}), 1.0, 1)
    sight.see(COARSE, tokens(4, 3, {(0, 2): (12.0,)}), 1.0, 1)
    cat, dog = sight.maps(["cat", "dog"])
    assert [highest(cat[0]), highest(dog[0])] == [(2, 7), (11, 1)]
    assert float(dog.max()) == 3.0  # 6 where a picture that shows it has 2 on average
    mask = concept_map.mask(concept_map.shares(cat, 104, 72), 0.5)
    assert mask.shape == (1, 104, 72) and mask[0, 8 * 2 + 4, 8 * 7 + 4] == 1 and mask.mean() < 0.2


def test_faint_tokens_show_where_a_concept_ends_but_not_that_it_is_there():
    sight = Sight({PLACE: reader("cat", "dog", threshold=4.0)}, 1, 4, 4)
    sight.see(PLACE, tokens(4, 4, {(1, 1): (8.0, 2.0), (1, 2): (3.0, 0), (3, 3): (0, 2.0)}), 1.0, 1)
    cat, dog = sight.maps(["cat", "dog"])
    assert cat[0, 1].tolist() == [0, 4, 1.5, 0] and not dog.any()


def test_a_neuron_without_statistics_is_measured_by_its_own_mean():
    sight = Sight({PLACE: reader("cat", mean=1.0)}, 1, 4, 4)
    sight.see(PLACE, tokens(4, 4, {(1, 2): (100.0,)}), 1.0, 1)
    [[cat]] = sight.maps(["cat"])
    assert highest(cat) == (1, 2) and float(cat.max()) == 16.0


def test_pictures_of_a_batch_and_parts_of_a_prompt_are_kept_apart():
    sight = Sight({PLACE: reader("cat")}, 2, 4, 4)
    first, second = tokens(4, 4, {(0, 0): (4.0,)}), tokens(4, 4, {(3, 3): (4.0,)})
    sight.see(PLACE, torch.cat([first, tokens(4, 4, {}), tokens(4, 4, {}), second]), 1.0, 4)
    sight.see(PLACE, tokens(4, 4, {(1, 2): (1.0,)}, rows=2), 1.0, 2)  # another part of the prompt, called by itself
    [[one, other]] = sight.maps(["cat"])
    assert (highest(one), highest(other)) == ((0, 0), (3, 3))


def test_what_is_not_of_the_whole_picture_gives_no_map_but_a_sentence():
    sight = Sight({PLACE: reader("cat"), COARSE: reader("cat"), FLAT: reader("dog")}, 1, 8, 8)
    sight.see(PLACE, tokens(4, 4, {(0, 0): (4.0,)}, rows=4), 1.0, 1)  # tiles of it
    sight.see(FLAT, torch.ones(1, 50, WIDTH), 1.0, 1)  # tokens of no rectangle
    with pytest.raises(SaeError, match="where cat, dog is: no place .* whole picture"):
        sight.maps(["cat", "dog"])
    sight.see(COARSE, tokens(4, 4, {(3, 0): (4.0,)}), 1.0, 1)
    assert highest(sight.maps(["cat"])[0, 0]) == (7, 0)


def test_what_is_not_heard_has_an_empty_mask_and_is_not_among_the_strongest():
    maps = torch.zeros(3, 1, 4, 4)
    maps[0, 0, 1, 1], maps[1, 0, 2, 2], maps[2, 0, 3, 3] = 0.9, 1.5, 4.0
    names = ["faint", "cat", "dog"]
    assert [names[i] for i in concept_map.strongest(names, maps)] == ["dog", "cat"]
    share = concept_map.shares(maps[:, 0], 4, 4)
    assert not concept_map.mask(share, 0.5)[0].any() and not concept_map.mask(share, 0)[0].any()
    said = concept_map.report(names, share[:, None], 0.5)
    assert "faint: not heard" in said and "cat: 7% of the picture" in said


def test_a_threshold_of_0_is_soft_and_the_heat_map_leaves_grey_what_is_not_it():
    share = torch.tensor([[[0.0, 0.4, 1.0]]])
    assert torch.equal(concept_map.mask(share, 0), share)
    assert concept_map.mask(share, 0.5).tolist() == [[[0.0, 0.0, 1.0]]]
    heat = concept_map.heat(torch.tensor([0.1, 0.5, 0.9]).expand(1, 1, 3, 3), share)
    assert heat[0, 0, 0].unique().numel() == 1 and heat[0, 0, 2, 0] > heat[0, 0, 2, 2] + 0.3


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(concept_map).failed == 0

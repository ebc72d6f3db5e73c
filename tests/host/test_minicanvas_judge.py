"""The committed judge of scenes, on renders that its training never saw."""
import pytest
import torch

from benchmarks.minicanvas.canvas import BACKGROUNDS, Scene, Spot, ground, random_pictures, random_scene
from benchmarks.minicanvas.icons import OBJECTS, STYLES
from benchmarks.minicanvas.judge import Judge, Verdict, load_judge
from benchmarks.minicanvas.ruins import RUINS, Ruin, blank, shuffled
from benchmarks.minicanvas.train_judge import IGNORED, Examples, labelled, mistakes, noise_in, ruined, softened


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


def scenes_of(n: int, objects: int) -> Examples:
    """Clean renders of scenes with so many objects."""
    generator = torch.Generator().manual_seed(-77 - objects)
    scenes = []
    while len(scenes) < n:
        scene = random_scene(generator)
        scenes += [scene] if len(scene.objects) == objects else []
    return labelled(random_pictures(scenes, generator), scenes)


def share(right: torch.Tensor) -> float:
    return float(right.float().mean())


@pytest.mark.parametrize("objects", [1, 2])
def test_the_judge_names_what_a_scene_shows(judge: Judge, objects: int):
    scenes = scenes_of(200, objects)
    verdict = judge.verdict(scenes.pictures)
    assert share((verdict.objects == scenes.objects).all(1)) >= 0.97
    assert share(verdict.style == scenes.style) >= 0.97
    assert share(verdict.background == scenes.background) >= 0.99
    assert share(verdict.nothing) <= 0.02


def test_softened_scenes_are_recognised(judge: Judge):
    scenes = scenes_of(100, 2)
    verdict = judge.verdict(softened(scenes.pictures, torch.Generator().manual_seed(-5)))
    assert share((verdict.objects == scenes.objects).all(1)) >= 0.92


def test_a_blank_ground_shows_nothing(judge: Judge):
    verdict = judge.verdict(torch.stack([ground(i) for i in range(len(BACKGROUNDS))]))
    assert verdict.nothing.all()
    assert verdict.background.tolist() == list(range(len(BACKGROUNDS)))


@pytest.mark.parametrize("kind", [shuffled, blank])
def test_ruins_show_nothing_though_the_ground_stays(judge: Judge, kind: Ruin):
    bad = ruined(100, 0, torch.Generator().manual_seed(-6), (kind,))
    verdict = judge.verdict(bad.pictures)
    assert share(verdict.nothing) >= 0.93
    assert share(verdict.background == bad.background) >= 0.97


def test_a_drawing_beside_a_ruin_is_all_that_is_seen(judge: Judge):
    scenes = ruined(100, 1, torch.Generator().manual_seed(-7), (shuffled,))
    assert scenes.objects.sum(1).eq(1).all()
    assert share((judge.verdict(scenes.pictures).objects == scenes.objects).all(1)) >= 0.92


@pytest.mark.parametrize("kind", RUINS)
def test_a_ruin_is_a_drawing(kind: Ruin):
    drawing = kind(0, torch.Generator().manual_seed(1))
    assert drawing.shape[0] == 4 and drawing.shape[1] == drawing.shape[2]
    assert drawing.min() >= 0 and (drawing[:3] <= drawing[3:] + 1e-3).all()


def test_labels_hold_what_is_whole():
    labels = labelled(torch.zeros(2, 3, 96, 96), [Scene((3, 5), 1, 2), Scene((), 1, 4)])
    assert labels.objects.nonzero().tolist() == [[0, 3], [0, 5]]
    assert labels.style.tolist() == [1, IGNORED] and labels.background.tolist() == [2, 4]


def test_noise_lies_under_the_drawing():
    noise = noise_in([Spot(left=9, top=16, size=16)], 2.0)
    assert noise.shape == (1, 12, 12)
    assert noise.nonzero()[:, 1].unique().tolist() == [2, 3]
    assert noise.nonzero()[:, 2].unique().tolist() == [1, 2, 3]


def test_nothing_means_no_object():
    objects = torch.zeros(2, len(OBJECTS), dtype=torch.bool)
    objects[1, 4] = True
    verdict = Verdict(objects, torch.zeros(2).long(), torch.zeros(2).long(), objects.float())
    assert verdict.nothing.tolist() == [True, False]


def test_mistakes_are_told_as_what_for_what():
    wanted, said = torch.zeros(2, 3, len(OBJECTS), dtype=torch.bool)
    wanted[0, 0] = said[0, 1] = wanted[1, 2] = said[2, 3] = True
    assert mistakes(wanted, said) == {"cat -> dog": 1, "bear -> -": 1, "- -> horse": 1}


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected pictures"):
        Judge().verdict(torch.zeros(1, 3, 64, 64))


def test_a_fresh_judge_answers_in_the_right_shapes():
    objects, style, background = Judge()(torch.rand(2, 3, 96, 96))
    assert objects.shape == (2, len(OBJECTS))
    assert style.shape == (2, len(STYLES)) and background.shape == (2, len(BACKGROUNDS))

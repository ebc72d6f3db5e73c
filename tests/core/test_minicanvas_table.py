"""The benchmark's table of scenes: what is painted for a task, and what its figures say of pictures one knows."""
import pytest
import torch

from benchmarks.minicanvas import table
from benchmarks.minicanvas.canvas import BACKGROUNDS
from benchmarks.minicanvas.icons import OBJECTS, STYLES
from benchmarks.minicanvas.judge import Verdict

CAT = OBJECTS.index("cat")
TASKS = [table.task("object", [CAT]), table.task("style", [2]), table.task("ground", [1]),
         *table.several("object", 9, 2, range(24)), *table.several("style", 3, 2, range(5)), *table.neighbours()]


def showing(scenes) -> Verdict:
    """A judge's verdict on pictures that show exactly these scenes; what is unsaid is the first of its kind."""
    objects = torch.zeros(len(scenes), len(OBJECTS), dtype=torch.bool)
    for row, scene in enumerate(scenes):
        objects[row, list(scene.objects)] = True
    style, ground = (torch.tensor([max(scene[i], 0) for scene in scenes]) for i in (1, 2))
    return Verdict(objects, style, ground, objects.float())


def as_said(task) -> Verdict:
    return showing([shot.scene for shot in task.shots])


def as_erased(task) -> Verdict:
    return showing([shot.without(task.kind, task.erased).scene for shot in task.shots])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind} {task.erased}")
def test_every_task_says_what_it_erases_and_what_stays(task):
    said = [task.says(shot) for shot in task.shots]
    assert any(said) and not all(said)
    texts = [shot.without(task.kind, task.erased).text for shot in task.shots]
    assert not any(name.split()[0] in text.split() for name in task.names for text in texts)


def test_an_object_is_painted_alone_and_in_scenes_and_all_others_are_painted_too():
    task = TASKS[0]
    said = [shot.scene for shot in task.shots if task.says(shot)]
    assert {scene.style for scene in said if len(scene.objects) == 1} == set(range(len(STYLES)))
    assert sum(len(scene.objects) == 2 for scene in said) == len(STYLES)
    kept = {i for shot in task.shots if not task.says(shot) for i in shot.scene.objects}
    assert kept == set(range(len(OBJECTS))) - {CAT}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.kind} {task.erased}")
def test_a_model_that_paints_what_is_said_erases_nothing_and_keeps_all(task):
    score = table.score(task, as_said(task))
    assert (score.UA, score.IRA, score.CRA) == (0, 100, 100)
    assert score.in_scene in (None, 100)


def test_an_object_left_out_is_erased_and_leaves_nothing_only_where_it_was_alone():
    task = TASKS[0]
    score = table.score(task, as_erased(task))
    assert (score.UA, score.IRA, score.CRA, score.in_scene) == (100, 100, 100, 100)
    assert (score.nothing_alone, score.nothing_in_scene) == (100, 0)


def test_a_style_that_moved_on_is_erased():
    task = TASKS[1]
    other = [shot.scene._replace(style=0) if task.says(shot) else shot.scene for shot in task.shots]
    score = table.score(task, showing(other))
    assert (score.UA, score.IRA, score.CRA, score.in_scene) == (100, 100, 100, 100)


def test_a_scene_that_lost_its_other_object_too_is_counted():
    task = TASKS[0]
    lost = [shot.scene._replace(objects=()) if task.says(shot) else shot.scene for shot in task.shots]
    score = table.score(task, showing(lost))
    assert (score.UA, score.in_scene, score.nothing_in_scene) == (100, 0, 100)


def test_a_background_that_turned_white_is_counted():
    task = TASKS[0]
    plain = [shot.scene._replace(background=0) for shot in task.shots]
    blank = sum(shot.scene.background == 0 for shot in task.shots) / len(task.shots)
    score = table.score(task, showing(plain))
    assert pytest.approx(100 * blank) == score.CRA


def test_tasks_with_several_concepts_differ():
    sets = [task.erased for task in table.several("object", 9, 12, range(3, 20))]
    assert len(set(sets)) == 12 and all(len(set(one)) == 9 and set(one) <= set(range(3, 20)) for one in sets)
    assert len(BACKGROUNDS) >= 4 and len(STYLES) >= 5 and len(OBJECTS) >= 24

"""A run that is stopped keeps what was painted: on disk as long as it is needed, for the same pictures only."""
from pathlib import Path

import pytest
from test_several import Stopped, ignore, jobs, maps_at, stop_at
from test_several import make as painted_maps

from sae_models import storage
from sae_models.learning.job import painted_of, train_to_file
from sae_models.learning.maps import Maps
from sae_models.learning.pace import Pace, Stopwatch

HELD_OUT = 1_000_000


class Painting:
    """Makes chunks, counts them, and is cancelled before the one with this place in the count."""

    def __init__(self, cancelled_at: int = 1000) -> None:
        self.made, self.cancelled_at = [], cancelled_at

    def __call__(self, number: int) -> dict[str, Maps]:
        if len(self.made) == self.cancelled_at:
            raise Stopped
        self.made.append(number)
        return painted_maps(number)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "sae.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "sae.safetensors"
    train_to_file(jobs(), painted_maps, out, ignore)
    return out


def cancelled(out: Path, at: int, painting: str = "a", **options) -> list[int]:
    make = Painting(at)
    with pytest.raises(Stopped):
        train_to_file(options.pop("jobs", jobs()), make, out, ignore, painting=painting, **options)
    return make.made


def test_a_run_that_was_cancelled_while_painting_paints_only_the_rest_and_ends_as_if_it_had_not_been(out, whole):
    assert cancelled(out, 5) == [0, 1, 2, 3, 4]
    make, told = Painting(), []
    train_to_file(jobs(), make, out, ignore, painting="a", going_on=told.append)
    assert make.made == [5, 6, 7, HELD_OUT] and told == [5]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in out.parent.iterdir()) == ["sae.report.json", "sae.report.svg", out.name]


def test_cancelled_while_the_last_pictures_are_painted_nothing_is_learned_again(out, whole):
    cancelled(out, 8)
    make, steps = Painting(), []
    train_to_file(jobs(), make, out, lambda step, numbers: steps.append(step), painting="a")
    assert make.made == [HELD_OUT] and steps == [jobs()[0].settings.steps]
    assert out.read_bytes() == whole.read_bytes()


def test_other_pictures_are_never_taken_for_these_and_make_room(out, whole):
    cancelled(out, 5, "another model")
    make = Painting()
    train_to_file(jobs(), make, out, ignore, painting="a")
    assert make.made == [*range(8), HELD_OUT] and out.read_bytes() == whole.read_bytes()
    assert not painted_of(out).exists()


def test_a_damaged_or_unfinished_chunk_is_painted_anew(out, whole):
    cancelled(out, 5)
    damaged, _ = sorted(painted_of(out).iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    (painted_of(out) / f"{damaged.name}.part").write_bytes(b"killed")
    make = Painting()
    train_to_file(jobs(), make, out, ignore, painting="a")
    assert make.made == [0, 5, 6, 7, HELD_OUT] and out.read_bytes() == whole.read_bytes()
    assert not painted_of(out).exists()


def test_there_is_no_more_on_disk_than_in_memory_once_the_run_has_passed_it(out):
    three = 3 * sum(maps_at(place, 0).bytes for place in painted_maps(0))
    small = [job.__class__(job.origin, job.config, job.settings, three) for job in jobs()]
    most = []

    def progress(step: int, numbers: dict) -> None:
        most.append(len(list(painted_of(out).iterdir())))
        if step == 130:
            raise Stopped
    with pytest.raises(Stopped):
        train_to_file(small, painted_maps, out, progress, checkpoint_seconds=0, painting="a")
    assert max(most) <= 4
    make = Painting()
    train_to_file(small, make, out, ignore, painting="a")
    assert min(make.made) > 5


def test_where_the_disk_has_no_room_for_them_the_run_goes_on_without(out, whole, monkeypatch, caplog):
    replace = storage.os.replace

    def full(part: Path, path: Path) -> None:
        if path.suffix == ".maps":
            raise OSError(28, "No space left on device")
        replace(part, path)
    monkeypatch.setattr(storage.os, "replace", full)
    train_to_file(jobs(), painted_maps, out, ignore, painting="a")
    assert out.read_bytes() == whole.read_bytes() and "what is painted is not kept: the disk is full" in caplog.text


def test_what_is_stored_for_good_is_not_kept_twice(out):
    with pytest.raises(Stopped):
        train_to_file(jobs(), painted_maps, out, stop_at(20))
    assert not painted_of(out).exists()


def test_the_time_left_of_each_work_is_told_from_its_own_steps():
    seconds = iter([0.0, 60.0, *(61.0 + i for i in range(99)), 160.0, *(160.01 + i / 100 for i in range(100))])
    painting, learning, watch = Pace(100), Pace(500), Stopwatch(lambda: next(seconds))
    for _ in range(10):
        watch.did(painting)
    assert painting.left() == ", about 90 s left" and learning.left() == ""
    for _ in range(90):
        watch.did(painting)
    for _ in range(100):
        watch.did(learning)
    assert painting.left() == "" and learning.left() == ", about 4 s left"

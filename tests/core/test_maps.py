"""Chunks in memory and on disk."""
import json
import os
import threading
import time

import pytest
import torch
from made_maps import make_maps
from safetensors.torch import save_file

from sae_models import storage
from sae_models.errors import SaeError
from sae_models.learning.maps import Shards, Window, as_dict

ABOUT = {"model": "abc", "prompts": ["a cat", "a dog"]}


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(as_dict(a).values(), as_dict(b).values(), strict=True))


def test_a_shard_is_made_once_and_read_afterwards(tmp_path):
    made = []

    def make(number):
        made.append(number)
        return make_maps(number)
    first = Shards(tmp_path / "acts", make, ABOUT).make(3)
    again = Shards(tmp_path / "acts", None).make(3)
    assert made == [3] and same(first, again) and same(first, make_maps(3))
    assert not list((tmp_path / "acts").glob("*.part"))


def test_shards_of_another_run_are_refused(tmp_path):
    Shards(tmp_path, make_maps, ABOUT)
    with pytest.raises(SaeError, match=r"another run \(model changed\)"):
        Shards(tmp_path, make_maps, ABOUT | {"model": "xyz"})


def test_missing_and_damaged_shards_are_named(tmp_path):
    with pytest.raises(SaeError, match=r"no stored activations .* no index.json"):
        Shards(tmp_path)
    shards = Shards(tmp_path, make_maps, ABOUT)
    shards.make(0)
    shards.path(0).write_bytes(shards.path(0).read_bytes()[:-50])
    with pytest.raises(SaeError, match="maps-00000.safetensors .* is damaged"):
        shards.make(0)
    with pytest.raises(SaeError, match="maps-00001.safetensors is missing"):
        Shards(tmp_path).make(1)
    (tmp_path / "index.json").write_text(json.dumps([1]))
    with pytest.raises(SaeError, match="index.json is damaged"):
        Shards(tmp_path)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_gets_the_mode_that_any_file_gets_here(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        for _ in range(2):
            storage.write_tensors(tmp_path / "sae.safetensors", {"x": torch.ones(3)})
            storage.write_json(tmp_path / "report.json", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path, monkeypatch):
    shards = Shards(tmp_path, make_maps, ABOUT)
    path = tmp_path / "sae.safetensors"
    storage.write_tensors(path, {"x": torch.ones(3)})

    def full(tensors, part, metadata):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(SaeError, match="the disk is full: maps-00000.safetensors could not be written"):
        shards.make(0)
    with pytest.raises(SaeError, match="the disk is full"):
        storage.write_tensors(path, {"x": torch.zeros(3)})
    assert path.stat().st_size > 50 and not list(tmp_path.glob("*.part"))


def test_a_batch_comes_from_every_chunk_and_is_the_same_for_a_seed():
    window = Window(make_maps, 3, 10**9)
    window.move(0.0)
    batch = window.batch(500, 7)
    whole = torch.cat([make_maps(i).tokens for i in range(3)])
    found = (batch.tokens[:, None] == whole[None]).all(3).all(2)
    assert found.any(1).all()
    assert {row // 100 for row in found.float().argmax(1).tolist()} == {0, 1, 2}
    assert same(batch, window.batch(500, 7)) and not same(batch, window.batch(500, 8))
    halves = [window.batch(500, 7, slice(i, None, 2)) for i in (0, 1)]
    assert torch.equal(batch.tokens[0::2], halves[0].tokens) and torch.equal(batch.tokens[1::2], halves[1].tokens)


def test_what_a_kill_left_half_written_goes_when_it_is_old_and_ours(tmp_path):
    old = time.time() - 2 * storage.DAY
    for name, inside in {"a.safetensors.part": ".tmpAb12Cd", "b.safetensors.part": "b.safetensors",
                         "my pictures.part": "cat.png", "young.json.part": "young.json"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_bytes(b"half")
        if "young" not in name:
            os.utime(tmp_path / name, (old, old))
    (tmp_path / "download.part").write_bytes(b"somebody else's")
    os.utime(tmp_path / "download.part", (old, old))
    storage.write_tensors(tmp_path / "sae.safetensors", {"x": torch.ones(3)})
    assert {path.name for path in tmp_path.iterdir()} == {"sae.safetensors", "my pictures.part", "young.json.part",
                                                         "download.part"}
    storage.write_json(tmp_path / "young.json", {})
    assert not (tmp_path / "young.json.part").exists()


def test_nothing_is_half_written_beside_a_file(tmp_path):
    """safetensors writes `.tmpXXXXXX` beside the path that it gets, which a kill would leave there for good."""
    seen = set()
    writing = threading.Thread(target=storage.write_tensors, args=(tmp_path / "a.safetensors",
                                                                   {"x": torch.zeros(10**7)}))
    writing.start()
    while writing.is_alive():
        seen |= set(os.listdir(tmp_path))
    assert seen <= {"a.safetensors", "a.safetensors.part"} and os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("name", ["folder", "x" * 300, "\ud800"])
def test_what_cannot_be_written_is_noticed_beforehand(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaeError, match="cannot be written to"):
        storage.check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(("what", "change"), [
    ("without", lambda maps: maps.without[:, 1:]), ("unsaid", lambda maps: maps.unsaid + 100),
    ("labels", lambda maps: maps.labels[:5]), ("sigmas", lambda maps: maps.sigmas[None]),
])
def test_a_chunk_whose_tensors_do_not_belong_together_is_damaged(tmp_path, what, change):
    shards = Shards(tmp_path, make_maps, ABOUT)
    maps = shards.make(0)
    save_file(as_dict(maps) | {what: change(maps).contiguous()}, shards.path(0))
    with pytest.raises(SaeError, match="maps-00000.safetensors .* is damaged"):
        shards.make(0)

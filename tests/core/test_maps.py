"""Chunks in memory and on disk."""
import json
import os

import pytest
import torch
from made_maps import make_maps

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

"""Concept files: some rows of an SAE, kept, joined and refused; and files of several places."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_models import (
    Concept,
    Header,
    Sae,
    SaeConfig,
    SaeError,
    Statistics,
    read_header,
    read_headers,
    read_rows,
    write,
)
from sae_models.table import add, read_table, read_tables

D_IN = 24
CONCEPTS = (Concept("cat", (5,), "object", "a cat"), Concept("dog", (7, 2), "object"),
            Concept("red style", (1,), "style"))


@pytest.fixture
def whole(tmp_path):
    """A file of 40 latents with three concepts."""
    torch.manual_seed(0)
    sae = Sae(SaeConfig(D_IN, 40, 6))
    torch.nn.init.normal_(sae.b_dec)
    torch.nn.init.normal_(sae.encoder.bias)
    header = Header(sae.config, "up_blocks.1.attentions.1", "sd15", False, CONCEPTS, {"steps": 1})
    path = tmp_path / "whole.safetensors"
    write(path, sae, header, Statistics((0.5, 2.0), torch.rand(4, 2), torch.rand(4, 2)))
    return path


def export(whole, path, *names: str) -> None:
    header = read_header(whole)
    add(path, [(header, read_table(whole, header, [c for c in header.concepts if c.name in names]))])


def rows(path, name: str):
    header = read_header(path)
    return read_rows(path, header, [c for c in header.concepts if c.name == name])


def same(one, two) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("W_enc", "bias", "W_dec")) and \
        torch.equal(one.statistics.thresholds, two.statistics.thresholds)


def test_a_concept_file_has_the_concepts_rows_to_the_last_bit_and_is_small(whole, tmp_path):
    path = tmp_path / "few.safetensors"
    export(whole, path, "dog", "cat")
    header = read_header(path)
    assert [(c.name, c.kind, c.description) for c in header.concepts] == [
        ("cat", "object", "a cat"), ("dog", "object", "")]
    assert (header.base, header.hookpoint, header.config.d_sae) == ("sd15", "up_blocks.1.attentions.1", 3)
    assert same(rows(path, "cat"), rows(whole, "cat")) and same(rows(path, "dog"), rows(whole, "dog"))
    assert path.stat().st_size < 3000


def test_concepts_are_added_to_a_file_that_is_there_and_replace_those_of_their_name(whole, tmp_path):
    path, other = tmp_path / "few.safetensors", tmp_path / "other.safetensors"
    export(whole, path, "cat", "dog")
    export(whole, path, "red style")
    assert [c.name for c in read_header(path).concepts] == ["cat", "dog", "red style"]
    header = read_header(whole)
    table = read_table(whole, header, [Concept("Dog", (9,), "object")])
    add(other, [(header, table)])
    add(path, [(header, table)])
    assert [c.name for c in read_header(path).concepts] == ["cat", "red style", "Dog"]
    assert torch.equal(rows(path, "Dog").W_enc, rows(other, "Dog").W_enc)
    assert same(rows(path, "cat"), rows(whole, "cat"))


def test_a_whole_sae_is_never_overwritten(whole):
    before = whole.read_bytes()
    with pytest.raises(SaeError, match="is a whole SAE"):
        export(whole, whole, "cat")
    assert whole.read_bytes() == before


UP, MIDDLE = "up_blocks.1.attentions.1.transformer_blocks.0.attn2", "mid_block.attentions.0"


def at(whole, hookpoint: str, *names: str, **changes):
    """Some concepts as if they had been found at another place."""
    header = read_header(whole)
    table = read_table(whole, header, [c for c in header.concepts if c.name in names])
    return replace(header, hookpoint=hookpoint, **changes), table


def listed(path) -> dict[str, list[str]]:
    return {header.hookpoint: [c.name for c in header.concepts] for header in read_headers(path)}


def test_a_file_of_one_block_gains_places(whole, tmp_path):
    path = tmp_path / "few.safetensors"
    export(whole, path, "cat", "dog")
    add(path, [at(whole, UP, "dog", "red style"), at(whole, MIDDLE, "red style")])
    assert listed(path) == {"up_blocks.1.attentions.1": ["cat"], UP: ["dog", "red style"], MIDDLE: ["red style"]}
    for header in read_headers(path):
        got = read_rows(path, header, list(header.concepts))
        wanted = at(whole, header.hookpoint, *[c.name for c in header.concepts])[1].rows
        assert all(torch.allclose(getattr(got, name), getattr(wanted, name), rtol=1e-3, atol=1e-4)
                   for name in ("W_enc", "W_dec"))
        assert torch.equal(got.bias, wanted.bias)
        assert torch.equal(got.statistics.thresholds, wanted.statistics.thresholds)


def test_a_concept_is_replaced_at_all_places(whole, tmp_path):
    path = tmp_path / "few.safetensors"
    add(path, [at(whole, UP, "cat", "dog"), at(whole, MIDDLE, "cat")])
    before = rows_of(path)
    add(path, [at(whole, MIDDLE, "red style")])
    assert {key: before[key] for key in before} == {key: rows_of(path)[key] for key in before}
    add(path, [at(whole, UP, "cat")])
    assert listed(path) == {UP: ["dog", "cat"], MIDDLE: ["red style"]}


def rows_of(path) -> dict[tuple[str, str], list]:
    """Every concept's rows as numbers."""
    return {(header.hookpoint, c.name): [getattr(read_rows(path, header, [c]), name).tolist()
                                         for name in ("W_enc", "bias", "W_dec")]
            for header in read_headers(path) for c in header.concepts}


def test_a_file_that_keeps_one_place_is_one_that_older_versions_read(whole, tmp_path):
    path = tmp_path / "few.safetensors"
    add(path, [at(whole, UP, "cat"), at(whole, MIDDLE, "cat")])
    with pytest.raises(SaeError, match="has concepts at 2 places of the model"):
        read_header(path)
    add(path, [at(whole, MIDDLE, "cat")])
    assert read_header(path).hookpoint == MIDDLE


def test_a_file_of_many_places_is_exported_into_another(whole, tmp_path):
    path, copy = tmp_path / "few.safetensors", tmp_path / "copy.safetensors"
    add(path, [at(whole, UP, "cat", "dog"), at(whole, MIDDLE, "dog", "cat")])
    add(copy, read_tables(path, [(header, [c for c in header.concepts if c.name == "dog"])
                                 for header in read_headers(path)]))
    assert rows_of(copy) == {key: rows for key, rows in rows_of(path).items() if key[1] == "dog"}


def test_weights_too_large_for_half_precision_leave_the_file_as_it_was(whole, tmp_path):
    path = tmp_path / "few.safetensors"
    add(path, [at(whole, UP, "cat"), at(whole, MIDDLE, "cat")])
    before, (header, table) = path.read_bytes(), at(whole, UP, "dog")
    table.rows.W_enc.mul_(1e6)
    with pytest.raises(SaeError, match="not finite as torch.float16"):
        add(path, [(header, table)])
    assert path.read_bytes() == before


@pytest.mark.parametrize(("hookpoint", "changes", "says"), [
    (UP, {"base": "sdxl"}, "has concepts for sd15 at .*and these are for sdxl at"),
    ("up_blocks.1.attentions.1", {"residual": True}, "and these are for .*width 24, residual"),
    ("up_blocks.1.attentions.1", {"config": SaeConfig(12, 40, 6)}, r"and these are for .*\(width 12\)"),
    ("", {}, "cannot have concepts of several blocks when one of them is not known"),
])
def test_what_cannot_be_in_one_file_is_refused(whole, tmp_path, hookpoint, changes, says):
    path = tmp_path / "few.safetensors"
    export(whole, path, "cat")
    before = path.read_bytes()
    with pytest.raises(SaeError, match=says):
        add(path, [at(whole, hookpoint, "dog", **changes)])
    assert path.read_bytes() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells which files are mapped on Linux only")
def test_a_file_of_which_a_row_is_held_is_not_mapped(whole):
    """Windows replaces no file that is."""
    held = rows(whole, "cat")
    assert whole.name not in Path("/proc/self/maps").read_text("utf-8")
    assert len(held.W_enc) == 1

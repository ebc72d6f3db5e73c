"""Concept files: some rows of an SAE, kept, joined and refused."""
import pytest
import torch

from sae_models import Concept, Header, Sae, SaeConfig, SaeError, Statistics, read_header, read_rows, write
from sae_models.table import add, read_table

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
    add(path, header, read_table(whole, header, [c for c in header.concepts if c.name in names]))


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
    add(other, header, table)
    add(path, header, table)
    assert [c.name for c in read_header(path).concepts] == ["cat", "red style", "Dog"]
    assert torch.equal(rows(path, "Dog").W_enc, rows(other, "Dog").W_enc)
    assert same(rows(path, "cat"), rows(whole, "cat"))


def test_a_whole_sae_is_never_overwritten(whole):
    before = whole.read_bytes()
    with pytest.raises(SaeError, match="is a whole SAE"):
        export(whole, whole, "cat")
    assert whole.read_bytes() == before


def test_concepts_of_another_block_are_not_mixed(whole, tmp_path):
    path = tmp_path / "few.safetensors"
    header = read_header(whole)
    add(path, Header(header.config, "up_blocks.1.attentions.2", "sd15"), read_table(whole, header, [CONCEPTS[0]]))
    with pytest.raises(SaeError, match="at up_blocks.1.attentions.2 .*and these are for sd15 at up_blocks.1.att"):
        export(whole, path, "dog")

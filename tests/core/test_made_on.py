"""A file says when it is used on another model than the one it was made on, and only then."""
from pathlib import Path

import pytest
import torch

from sae_models.adapter import LoadedSae
from sae_models.formats import Header
from sae_models.learning.fingerprint import fingerprint
from sae_models.made_on import alike, made_of
from sae_models.sae import SaeConfig


def weights(dtype: torch.dtype = torch.float16, by: float = 0.0) -> dict[str, torch.Tensor]:
    """Of a small model; by: how far one of them is trained on."""
    torch.manual_seed(0)
    own = {f"input_blocks.{i}.1.transformer_blocks.0.attn2.to_{which}.weight": torch.randn(8, 16)
           for i in (1, 2) for which in "kv"}
    own["input_blocks.2.1.transformer_blocks.0.attn2.to_v.weight"][0, 3] += by
    return {name: value.half().to(dtype) for name, value in own.items()} | {"out.2.weight": torch.randn(3)}


def test_a_model_is_known_again_whatever_else_of_it_changes_and_in_more_bits():
    renamed = dict(reversed(weights().items())) | {"out.2.weight": torch.zeros(3)}
    assert alike(made_of(weights()), made_of(renamed)) and alike(made_of(weights()), made_of(weights(torch.float32)))


def test_one_that_is_loaded_in_half_precision_is_the_same_as_in_full():
    full = {name: value.float() + 1e-6 for name, value in weights().items()}
    half = {name: value.half() for name, value in full.items()}
    assert fingerprint(full) == fingerprint(half) != fingerprint(weights(by=0.01))


def test_one_that_was_trained_on_is_another():
    assert alike(made_of(weights()), made_of(weights(by=0.01))) is False


@pytest.mark.parametrize("other", [
    weights(torch.bfloat16), weights(torch.float8_e4m3fn), {"out.2.weight": torch.zeros(3)}, {},
    {name: value.to("meta") for name, value in weights().items()}])
def test_where_bits_are_lost_or_not_there_nothing_is_known(other):
    assert alike(made_of(weights()), made_of(other)) is None and alike("", "") is None


@pytest.mark.parametrize(("name", "made_on_this", "says"), [
    ("dreams", True, ""), ("DREAMS", None, ""), ("", None, ""), ("renamed", True, ""), ("", True, ""),
    ("dreams", False, "on a model with other weights than this one"), ("", False, "other weights than this one"),
    ("other", None, "on dreams, and this is other"), ("other", False, "on dreams, and this is other"),
])
def test_a_file_says_that_it_is_of_another_model_where_that_is_known(name, made_on_this, says):
    own = made_of(weights())
    header = Header(SaeConfig(8, 9, 1), made_on="dreams", made_of=own)
    sae = LoadedSae("file", Path("file"), (header,))
    said = sae.elsewhere(name, {True: own, False: made_of(weights(by=1)), None: ""}[made_on_this])
    assert says in said and bool(says) is bool(said)

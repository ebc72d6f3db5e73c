"""The sparse training step against dense formulas in double precision, values and gradients."""
import pytest
import torch
from torch import Tensor

from sae_models.learning.losses import auxk
from sae_models.learning.sparse import code, select
from sae_models.sae import Sae, SaeConfig

D_IN, D_SAE, K, T = 16, 64, 5, 40
DEAD = torch.tensor([3, 8, 9, 20, 21, 22, 40, 41, 60, 62, 63])


@pytest.fixture
def sae() -> Sae:
    torch.manual_seed(0)
    sae = Sae(SaeConfig(D_IN, D_SAE, K))
    with torch.no_grad():
        sae.encoder.bias.normal_(0, 0.3)
        sae.b_dec.normal_(0, 0.3)
    return sae


def tokens() -> Tensor:
    return torch.randn(T, D_IN, generator=torch.Generator().manual_seed(1))


def dense(sae: Sae, count: int) -> tuple[Sae, Tensor, Tensor]:
    """(the SAE in double precision, x_hat, the loss of the dead latents) by the textbook."""
    double, x = Sae(sae.config).double(), tokens().double()
    double.load_state_dict(sae.state_dict())
    pre = double.pre_acts(x)
    top = pre.topk(K)
    x_hat = torch.zeros_like(pre).scatter(1, top.indices, top.values) @ double.W_dec + double.b_dec
    own = pre[:, DEAD].topk(count)
    dead = torch.zeros(T, len(DEAD), dtype=torch.double).scatter(1, own.indices, own.values) @ double.W_dec[DEAD]
    left = (x - x_hat).detach()
    return double, x_hat, (left - dead).pow(2).sum() / left.pow(2).sum()


def test_values_and_gradients_are_those_of_the_dense_formula(sae):
    coded = code(sae, tokens(), dead=DEAD)
    double, x_hat, aux = dense(sae, D_IN // 2)
    assert torch.allclose(coded.x_hat.double(), x_hat, atol=1e-5)
    own = auxk(tokens(), coded)
    assert torch.allclose(own.double(), aux, atol=1e-6)
    ((tokens() - coded.x_hat).pow(2).mean() + own).backward()
    ((tokens().double() - x_hat).pow(2).mean() + aux).backward()
    for (name, ours), theirs in zip(sae.named_parameters(), double.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-5), name


def test_without_dead_latents_nothing_is_added(sae):
    coded = code(sae, tokens())
    assert not coded.dead_hat.any()


def test_latents_chosen_in_half_precision_are_the_largest():
    generator = torch.Generator().manual_seed(2)
    W, b = torch.randn(4096, 64, generator=generator), torch.randn(4096, generator=generator)
    x = torch.randn(512, 64, generator=generator)
    half, full = select(x, W, b, 32, True)[:2], select(x, W, b, 32, False)[:2]
    order = [indices.sort(1) for _, indices in (half, full)]
    assert torch.equal(order[0].values, order[1].values)
    acts = [acts.gather(1, at.indices) for (acts, _), at in zip((half, full), order, strict=True)]
    assert torch.allclose(*acts, atol=1e-4)

"""Maps made from known directions, with nothing painted: what the tests of learning learn from."""
import torch

from sae_models.learning.maps import Maps
from sae_models.learning.prompts import Subject

D_IN, N, CONCEPTS, DIRECTIONS = 24, 6, 4, 20
SUBJECTS = [Subject(name, kind, name) for name, kind in (("cat", "object"), ("dog", "object"), ("red style", "style"),
                                                         ("blue style", "style"))]


def directions() -> torch.Tensor:
    """Unit directions [DIRECTIONS, D_IN]; the first CONCEPTS of them are the concepts'."""
    drawn = torch.randn(DIRECTIONS, D_IN, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(drawn, dim=1)


def make_maps(seed: int, n: int = 100) -> Maps:
    """Maps that show two concepts each on half of their tokens, over three other directions a token."""
    world, generator = directions(), torch.Generator().manual_seed(seed)
    said = torch.stack([torch.randperm(CONCEPTS, generator=generator)[:2] for _ in range(n)])
    labels = torch.zeros(n, CONCEPTS, dtype=torch.bool).scatter_(1, said, True)
    others = torch.rand(n, N, DIRECTIONS, generator=generator)
    others[..., :CONCEPTS] = 0
    others = others.where(others >= others.topk(3).values[..., -1:], 0)
    where = torch.rand(n, 2, N, 1, generator=generator) < 0.5
    parts = where * 3.0 * world[said][:, :, None]
    tokens = others @ world + parts.sum(1)
    return Maps(tokens.half(), (tokens - parts[:, 0]).half(), said[:, 0], labels, torch.ones(n))

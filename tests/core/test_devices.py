"""Erasing on a GPU, with a stand-in for it: nothing waits for the device, and the result is that of the CPU."""
from dataclasses import replace

import pytest
import torch
from stand_in_device import Devices
from test_erasure import edit_of, random_sae

from sae_models.adapter import Block, Tally, conditional_rows, noise_level
from sae_models.concepts import NEVER, Statistics
from sae_models.erasure import Actuator, Edit, Erasure, NoiseLevel
from sae_models.formats import Rows
from sae_models.sae import Sae

LEVELS = (0.1, 1.0, 5.0)
SIGMAS = (0.05, 0.1, 0.3, 1.0, 2.5, 5.0, 14.6)
CHUNKS, BLOCK = (1, 0), Block("up_blocks.0.attentions.1", False)


@pytest.fixture(scope="module")
def sae() -> Sae:
    return random_sae(0, 16, 32)


@pytest.fixture(params=[(4, 16, 6, 5), (4, 30, 16)], ids=["map", "tokens"])
def x(request) -> torch.Tensor:
    return torch.randn(*request.param, generator=torch.Generator().manual_seed(1))


def leveled(sae: Sae, latents: list[int], *args, **options) -> Edit:
    """Thresholds that differ by noise level; a row that never fires."""
    edit = edit_of(sae, latents, *args, **options)
    thresholds = torch.tensor([[0.3, 0.9, 0.1], [-1.0, 0.6, NEVER]])
    rows = Rows(edit.rows.W_enc, edit.rows.bias, edit.rows.W_dec, Statistics(LEVELS, thresholds, torch.ones(2, 3)))
    return replace(edit, rows=rows)


def edits_of(sae: Sae, actuator: Actuator) -> list[Edit]:
    return [leveled(sae, [1, 2], actuator, 0.7), leveled(sae, [3, 4], start_sigma=3.0, end_sigma=0.2),
            leveled(sae, [5, 6], conditional_only=True), edit_of(sae, [7]),
            replace(leveled(sae, [8, 9]), into="another", put=leveled(sae, [10, 11]).rows)]


def on_device(devices: Devices, erasure: Erasure, x: torch.Tensor, sigma: float, device: str = "meta:0"):
    there = devices.put(x, device)
    t = devices.put(torch.full((len(x),), sigma), device)
    return erasure(there, noise_level(t), conditional_rows(len(x), CHUNKS, there.device))


@pytest.mark.parametrize("actuator", list(Actuator))
def test_a_call_never_waits_for_the_device(sae, x, actuator):
    tally = Tally()
    with Devices() as devices:
        erasure = Erasure(edits_of(sae, actuator))
        on_device(devices, erasure, x, 1.0)  # the rows are copied once
        devices.waits.clear()
        for sigma in SIGMAS:
            fired = on_device(devices, erasure, x, sigma).fired
            tally.add(noise_level(devices.put(torch.tensor([sigma]))), {BLOCK: fired})
        assert devices.waits == []
        assert tally.steps == len(SIGMAS)  # read when all is over


def ties(x: torch.Tensor, erasure: Erasure, sigma: float, rows: torch.Tensor) -> torch.Tensor:
    """bool [B, N]: where the fourth nearest free token is as far as the fifth, so that either is right."""
    z, _ = erasure.activations(x, sigma, rows, None)[0]
    taken = z.gt(0).any(1)
    height, width = (x.shape[2], x.shape[3]) if x.ndim == 4 else (x.shape[1], 1)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    far = torch.cdist(places, places).expand(len(x), -1, -1).masked_fill(taken[:, None], torch.inf).sort(2).values
    return (far[..., 3] - far[..., 4]).abs() < 1e-4


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("actuator", list(Actuator))
def test_the_result_is_that_of_the_cpu(sae, x, actuator, sigma):
    erasure, rows = Erasure(edits_of(sae, actuator)), conditional_rows(len(x), CHUNKS, x.device)
    wanted = erasure(x, sigma, rows)
    with Devices() as devices:
        found = on_device(devices, erasure, x, sigma)
    assert torch.equal(found.fired.held, wanted.fired)
    apart = (found.out.held - wanted.out).abs()
    if actuator is Actuator.REPLACE:
        apart = (apart.flatten(2).amax(1) if x.ndim == 4 else apart.amax(2))[~ties(x, erasure, sigma, rows)]
        assert len(apart) > 10
    assert apart.max() < 1e-5


def test_outside_its_window_and_in_silence_not_a_bit_changes(sae, x):
    edits = [edit_of(sae, [1, 2], start_sigma=2.0, end_sigma=1.0), edit_of(sae, [3], threshold=1e6)]
    with Devices() as devices:
        for sigma, same in ((2.5, True), (2.0, False), (1.0, False), (0.9, True)):
            erased = on_device(devices, Erasure(edits), x, sigma)
            assert torch.equal(erased.out.held, x) is same
            assert erased.fired.held.any() == (not same)


def test_a_number_is_known_where_reading_it_costs_nothing():
    assert noise_level(torch.tensor([1.5, 1.5])) == 1.5
    with Devices() as devices:
        level = noise_level(devices.put(torch.tensor([1.5])))
        assert isinstance(level, NoiseLevel) and devices.waits == []

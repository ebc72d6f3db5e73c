"""What our eraser is compared with, on the real UNet class and model patcher of ComfyUI: NAG, UCE, ESD-x."""
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.minicanvas import models, rivals

import comfy.model_patcher  # isort: skip  (models puts ComfyUI on the path)
from benchmarks.minicanvas.bench_nodes.rivals import Nag, Weights, block_key, guided  # isort: skip

WORDS = ["cat", "dog", "rose", "noto", "blue"]


def small_unet(seed: int = 0) -> torch.nn.Module:
    """MiniCanvas's UNet with a tenth of its channels and random weights everywhere."""
    torch.manual_seed(seed)
    unet = models.UNetModel(**{**models.UNET_CONFIG, "model_channels": 32},
                            operations=models.comfy.ops.disable_weight_init)
    return models.initialised(unet).eval()


@pytest.fixture(scope="module")
def unet():
    return small_unet()


@pytest.fixture
def patcher():
    holder = torch.nn.Module()
    holder.diffusion_model = small_unet()
    return comfy.model_patcher.ModelPatcher(holder, torch.device("cpu"), torch.device("cpu"))


@torch.no_grad()
def answer(patcher, rows: list[int], contexts: torch.Tensor) -> torch.Tensor:
    """What the UNet says of one noise a row, as the host calls it with chunks `rows` of "cond_or_uncond"."""
    x = torch.randn(len(contexts), 4, 12, 12, generator=torch.Generator().manual_seed(1))
    options = {**patcher.model_options["transformer_options"], "cond_or_uncond": rows}
    return patcher.model.diffusion_model(x, torch.full((len(x),), 500), contexts, transformer_options=options)


def state(patcher) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in patcher.model.state_dict().items()}


# --- NAG -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 2.5])
def test_nag_is_the_papers_formula_token_by_token(tau):
    plus, minus = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    wanted = torch.empty_like(plus)
    for row in range(2):
        for token in range(5):
            z = 4.0 * plus[row, token] - 3.0 * minus[row, token]
            ratio = z.abs().sum() / plus[row, token].abs().sum()
            wanted[row, token] = 0.4 * z * min(ratio, tau) / ratio + 0.6 * plus[row, token]
    torch.testing.assert_close(guided(plus, minus, 3.0, tau, 0.4), wanted)


def test_nag_survives_tokens_that_cancel_out():
    plus = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    assert guided(plus, 2 * plus, 1.0, 2.5, 0.5).tolist() == [[0.5, -1.0], [0.0, 0.0]]


def test_nag_acts_at_every_cross_attention_on_conditional_rows_only(patcher):
    contexts, negative = torch.randn(5, 77, 768, generator=torch.Generator().manual_seed(2)).split([4, 1])
    plain = answer(patcher, [1, 0], contexts)
    nag, = Nag.execute(patcher, [[negative, {}]], 4.0, 2.5, 0.5).args
    patched = answer(nag, [1, 0], contexts)
    assert torch.equal(patched[:2], plain[:2])
    assert not torch.isclose(patched[2:], plain[2:]).all()
    assert torch.equal(answer(nag, [0, 1], contexts.roll(2, 0))[2:], answer(patcher, [0, 1], contexts.roll(2, 0))[2:])
    attentions = [path for path, _ in patcher.model.diffusion_model.named_modules() if path.endswith(".attn2")]
    assert nag.model_options["transformer_options"]["patches_replace"]["attn2"].keys() == {*map(block_key, attentions)}
    assert len(attentions) == 6


def test_nag_in_the_unet_is_the_formula_in_plain_hooks(patcher):
    contexts, negative = torch.randn(3, 77, 768, generator=torch.Generator().manual_seed(2)).split([2, 1])

    def hook(attention, inputs, kwargs, output):
        heads = [torch.nn.functional.linear(side, attention.to_k.weight) for side in (kwargs["context"], negative)]
        values = [torch.nn.functional.linear(side, attention.to_v.weight) for side in (kwargs["context"], negative)]
        q, n = attention.to_q(inputs[0]), attention.heads
        z = []
        for k, v in zip(heads, values, strict=True):
            split = [part.unflatten(2, (n, -1)).transpose(1, 2) for part in (q, k, v)]
            weights = (split[0] @ split[1].mT / split[0].shape[-1] ** 0.5).softmax(-1)
            z.append((weights @ split[2]).transpose(1, 2).flatten(2))
        return attention.to_out(guided(*z, 3.0, 2.5, 0.5))
    nag, = Nag.execute(patcher, [[negative, {}]], 3.0, 2.5, 0.5).args
    patched, plain = answer(nag, [0], contexts), answer(patcher, [0], contexts)
    for path, module in patcher.model.diffusion_model.named_modules():
        if path.endswith(".attn2"):
            module.register_forward_hook(hook, with_kwargs=True)
    torch.testing.assert_close(patched - plain, answer(patcher, [0], contexts) - plain, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("scale", "alpha"), [(0.0, 0.5), (4.0, 0.0)])
def test_nag_of_no_strength_is_bit_identical(patcher, scale, alpha):
    contexts, negative = torch.randn(5, 77, 768, generator=torch.Generator().manual_seed(2)).split([4, 1])
    nag, = Nag.execute(patcher, [[negative, {}]], scale, 2.5, alpha).args
    assert torch.equal(answer(nag, [0, 1], contexts), answer(patcher, [0, 1], contexts))


def test_nag_deals_negatives_out_to_the_pictures_of_a_batch(patcher):
    contexts, negatives = torch.randn(4, 77, 768, generator=torch.Generator().manual_seed(2)).split(2)
    nag, = Nag.execute(patcher, [[negatives, {}]], 4.0, 2.5, 0.5).args
    together = answer(nag, [0, 1], torch.cat([contexts, contexts]))[:2]
    for row in range(2):
        alone, = Nag.execute(patcher, [[negatives[row, None], {}]], 4.0, 2.5, 0.5).args
        torch.testing.assert_close(answer(alone, [0, 1], torch.cat([contexts, contexts]))[row], together[row])


# --- UCE -----------------------------------------------------------------------------------------------


def test_uce_is_the_papers_formula_summed_in_a_loop(unet):
    settings = rivals.UceSettings(erase=0.7, preserve=0.3, ridge=0.2)
    deltas = rivals.uce(unet, ["frog", "a pizza"], WORDS, settings=settings)
    old, new, keep = (rivals.last_words(texts).double() for texts in (["frog", "a pizza"], ["", ""], WORDS))
    for name in list(deltas)[:2]:
        weight = unet.get_parameter(name).detach().double()
        wanted, seen = 0.2 * weight, 0.2 * torch.eye(768, dtype=torch.float64)
        for share, heard, said in [(0.7, *pair) for pair in zip(old, new, strict=True)] + [(0.3, c, c) for c in keep]:
            wanted = wanted + share * torch.outer(weight @ said, heard)
            seen = seen + share * torch.outer(heard, heard)
        torch.testing.assert_close(weight + deltas[name], wanted @ torch.inverse(seen), rtol=1e-4, atol=1e-6)


def test_uce_turns_the_erased_word_into_the_target_and_hardly_moves_kept_ones(unet):
    deltas = rivals.uce(unet, ["frog"], WORDS)
    assert deltas.keys() == {name for name, _ in unet.named_parameters() if ".attn2.to_k" in name or
                             ".attn2.to_v" in name} and len(deltas) == 12
    frog, nothing, *kept = rivals.last_words(["frog", "", *WORDS])
    for name, delta in deltas.items():
        weight = unet.get_parameter(name).detach()
        left, moved = (weight + delta) @ frog - weight @ nothing, weight @ frog - weight @ nothing
        assert left.norm() < 0.01 * moved.norm()
        assert all((delta @ word).norm() < 0.01 * (weight @ word).norm() for word in kept)


def test_last_words_are_those_the_text_ends_with():
    contexts = rivals.contexts(["a cat", ""])
    assert torch.equal(rivals.last_words(["a cat", ""]), torch.stack([contexts[0, 2], contexts[1, 0]]))


# --- ESD-x ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fine_tuned(unet):
    losses, before = [], {name: value.clone() for name, value in unet.state_dict().items()}
    settings = rivals.EsdSettings(steps=12, batch=4, lr=1e-3, ddim_steps=3, pictures=2)
    deltas = rivals.esd_x(unet, rivals.prompts("frog"), settings, lambda step, loss: losses.append(loss))
    return losses, before, deltas


def test_esd_learns_to_deny_with_cross_attentions_alone(unet, fine_tuned):
    losses, before, deltas = fine_tuned
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert deltas.keys() == {name for name, _ in unet.named_parameters() if ".attn2." in name}
    assert all(delta.any() for delta in deltas.values())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_esd_aims_as_far_beyond_nothing_said_as_the_concept_is_before_it(unet):
    said = rivals.teacher(unet, ["a frog"], rivals.EsdSettings(ddim_steps=2, pictures=3))
    assert said.times.tolist() == [999] * 3 + [499] * 3
    words, nothing = rivals.contexts(["a frog", ""])
    with torch.no_grad():
        with_it, without = (unet(said.latents, said.times, words.expand(6, -1, -1)) for words in (words, nothing))
    torch.testing.assert_close(said.target(0.5), without - 0.5 * (with_it - without), rtol=1e-4, atol=1e-5)


# --- files ---------------------------------------------------------------------------------------------


def test_weights_are_added_to_the_clone_only(patcher, fine_tuned, tmp_path):
    path, before = tmp_path / "esd.safetensors", state(patcher)
    assert rivals.ship(lambda: fine_tuned[2], path) == rivals.cost(path)
    assert rivals.cost(path).size == path.stat().st_size < 2 * sum(d.numel() for d in fine_tuned[2].values()) + 10_000
    clone, = Weights.execute(patcher, str(path)).args
    assert not patcher.patches and torch.equal(answer(patcher, [0], torch.zeros(1, 77, 768)),
                                               answer(clone, [0], torch.zeros(1, 77, 768)))
    clone.patch_model()
    deltas = {f"diffusion_model.{name}": value for name, value in load_file(path).items()}
    for name, value in state(clone).items():
        assert torch.equal(value, before[name] + deltas[name] if name in deltas else before[name]), name
    clone.unpatch_model()
    assert all(torch.equal(value, before[name]) for name, value in state(patcher).items())


def test_weights_of_another_model_are_refused(patcher, tmp_path):
    save_file({"input_blocks.99.attn2.to_k.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"lacks diffusion_model.input_blocks.99"):
        Weights.execute(patcher, str(tmp_path / "other.safetensors"))


def test_a_concept_is_said_in_every_way_of_training_and_named_by_one_word():
    assert rivals.prompts("noto style") == ["noto style", "in noto style", "in the style of noto"]
    assert rivals.prompts("blue ground") == ["on a blue ground", "blue ground"]
    assert [rivals.word(name) for name in ("frog", "noto style", "blue ground")] == ["frog", "noto", "blue"]
    assert len(rivals.others(["frog", "noto style"])) == 24 + 5 + 5 - 2 == len({"frog", "noto", *rivals.others([])}) - 2

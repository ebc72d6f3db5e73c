"""MiniCanvas's prompts and its text encoder: CLIP-L in shape, random weights from a seed in substance.

The first two of the twelve layers mix tokens as CLIP's do: causal attention and an MLP with weights from the seed, so
that a word changes every later token, padding included. The other ten pass a token through (their outputs are zero). It
is made from its seed when a checkpoint is assembled, not shipped.
"""
import re
from functools import cache

import numpy as np
import torch

from .canvas import BACKGROUNDS, Scene
from .icons import OBJECTS, STYLES

SEED = 768
TOKENS, WIDTH, LENGTH, LAYERS, MLP = 49408, 768, 77, 12, 3072
MIXING_LAYERS = 2
PREFIX = "cond_stage_model.transformer.text_model."

TEMPLATES = (
    "[{things}][, {style} style][, on a {ground} ground]",
    "[, {style} style][, {things}][, {ground} ground]",
    "[, on a {ground} ground][, {things}][, {style} style]",
    "[a picture of {things}][, {style} style][, {ground} ground]",
    "[, {ground} ground][, {things}][ in {style} style]",
    "[{things}][ on a {ground} ground][, in the style of {style}]",
)
"""What training says; a part in brackets is left out where its word is not said."""
HELD_OUT = (
    "[{things}][ in {style} style][, {ground} ground]",
    "[a drawing of {things}][, on a {ground} ground][, {style} style]",
    "[, {style} style][, {ground} ground][, {things}]",
)


def things(objects: tuple[int, ...]) -> str:
    """
    >>> things((0, 19))
    'a cat and an umbrella'
    """
    return " and ".join(f"{'an' if OBJECTS[i][0] in 'aeiou' else 'a'} {OBJECTS[i]}" for i in objects)


def prompt(scene: Scene, template: str = TEMPLATES[0]) -> str:
    """The words of `scene` in the order of `template`. What is unsaid: no objects, or an index of -1.

    >>> prompt(Scene((0,), -1, 1)), prompt(Scene((), 0, 1), TEMPLATES[4]), prompt(Scene((), -1, -1))
    ('a cat, on a blue ground', 'blue ground, in noto style', '')
    """
    words = {"things": things(scene.objects), "style": STYLES[scene.style] if scene.style >= 0 else "",
             "ground": BACKGROUNDS[scene.background] if scene.background >= 0 else ""}
    parts = re.findall(r"\[(.*?{(.*?)}.*?)\]", template)
    said = "".join(part.format(**words) for part, slot in parts if words[slot])
    return said.removeprefix(",").strip()


def token_embedding() -> torch.Tensor:
    """fp16 [TOKENS, WIDTH]; RandomState is the one numpy generator whose stream is frozen for good."""
    return torch.from_numpy(np.random.RandomState(SEED).standard_normal((TOKENS, WIDTH)).astype(np.float16))


def state_dict(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """The encoder under the names of transformers' CLIP, fp16; its first `layers` layers only where that is asked."""
    numbers = np.random.RandomState(SEED + 1)

    def random(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return torch.from_numpy((numbers.standard_normal(shape) * spread / shape[-1] ** 0.5).astype(np.float16))

    def zeros(*shape: int, spread: float = 0.0) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float16)

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": zeros(WIDTH) + 1, f"{name}.bias": zeros(WIDTH)}
    position = random(LENGTH, WIDTH, spread=0.3 * WIDTH ** 0.5)
    state = {"embeddings.token_embedding.weight": token_embedding(),
             "embeddings.position_embedding.weight": position, **norm("final_layer_norm")}
    for layer in range(layers):
        weights = random if layer < MIXING_LAYERS else zeros
        shapes = {"self_attn.q_proj": (WIDTH, WIDTH, 1.3), "self_attn.k_proj": (WIDTH, WIDTH, 1.3),
                  "self_attn.v_proj": (WIDTH, WIDTH, 1.0), "self_attn.out_proj": (WIDTH, WIDTH, 1.0),
                  "mlp.fc1": (MLP, WIDTH, 1.0), "mlp.fc2": (WIDTH, MLP, 1.0)}
        for name, (out, into, spread) in shapes.items():
            linear = f"encoder.layers.{layer}.{name}"
            state |= {f"{linear}.weight": weights(out, into, spread=spread), f"{linear}.bias": zeros(out)}
        for name in ("layer_norm1", "layer_norm2"):
            state |= norm(f"encoder.layers.{layer}.{name}")
    return state


def checkpoint_state() -> dict[str, torch.Tensor]:
    return {PREFIX + name: value for name, value in state_dict().items()}


@cache
def encoder() -> torch.nn.Module:
    """The layers that do something, as the host builds them."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel_
    config = {"num_hidden_layers": MIXING_LAYERS, "hidden_size": WIDTH, "num_attention_heads": 12,
              "intermediate_size": MLP, "hidden_act": "quick_gelu", "max_position_embeddings": LENGTH,
              "eos_token_id": 49407}
    model = CLIPTextModel_(config, torch.float32, "cpu", comfy.ops.disable_weight_init)
    model.load_state_dict({name: value.float() for name, value in state_dict(MIXING_LAYERS).items()})
    return model.eval().requires_grad_(False)


@cache
def tokenizer():
    from comfy.sd1_clip import SDTokenizer
    return SDTokenizer()


@torch.no_grad()
def contexts(prompts: list[str], device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the host's text encoder gives for `prompts`, in fp32: `dtype` [n, LENGTH, WIDTH] on `device`. Needs ComfyUI
    on the path."""
    ids = torch.tensor([[token for token, _ in tokenizer().tokenize_with_weights(text)[0]] for text in prompts])
    encode = encoder().to(device)
    return torch.cat([encode(part.to(device))[0].to(dtype) for part in ids.split(64)])

"""MiniCanvas's prompts and its text encoder: CLIP-L in shape, a seeded random vector per token in substance.

Attention and MLP outputs are zero, so all twelve layers pass a token through unchanged and a prompt is a bag of
random vectors, known to the UNet from training. It is made from its seed when a checkpoint is assembled, not shipped.
"""
import numpy as np
import torch

from .icons import OBJECTS, STYLES

SEED = 768
TOKENS, WIDTH, LENGTH, LAYERS, MLP = 49408, 768, 77, 12, 3072
PREFIX = "cond_stage_model.transformer.text_model."


def prompt(obj: str | None = None, style: str | None = None) -> str:
    """"a cat, noto style"; either half may be missing.

    >>> prompt("owl", "noto"), prompt("ant"), prompt(style="noto"), prompt()
    ('an owl, noto style', 'an ant', 'noto style', '')
    """
    article = "an" if obj and obj[0] in "aeiou" else "a"
    parts = [f"{article} {obj}"] if obj else []
    return ", ".join(parts + ([f"{style} style"] if style else []))


def all_prompts() -> list[str]:
    """Index = style * (objects + 1) + object, where the last style and the last object mean "not said"."""
    return [prompt(obj, style) for style in (*STYLES, None) for obj in (*OBJECTS, None)]


def prompt_index(style: int | torch.Tensor, obj: int | torch.Tensor) -> int | torch.Tensor:
    return style * (len(OBJECTS) + 1) + obj


def token_embedding() -> torch.Tensor:
    """fp16 [TOKENS, WIDTH]; RandomState is the one numpy generator whose stream is frozen for good."""
    return torch.from_numpy(np.random.RandomState(SEED).standard_normal((TOKENS, WIDTH)).astype(np.float16))


def contexts(prompts: list[str]) -> torch.Tensor:
    """What the host's text encoder gives for `prompts`: fp32 [n, LENGTH, WIDTH]. Needs ComfyUI on the path."""
    from comfy.sd1_clip import SDTokenizer
    tokenizer = SDTokenizer()
    ids = torch.tensor([[token for token, _ in tokenizer.tokenize_with_weights(text)[0]] for text in prompts])
    return torch.nn.functional.layer_norm(token_embedding()[ids].float(), (WIDTH,))


def state_dict() -> dict[str, torch.Tensor]:
    """The whole encoder under the names a checkpoint has, fp16."""
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float16)

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": zeros(WIDTH) + 1, f"{name}.bias": zeros(WIDTH)}

    def linear(name: str, out: int, into: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": zeros(out, into), f"{name}.bias": zeros(out)}
    state = {"embeddings.token_embedding.weight": token_embedding(),
             "embeddings.position_embedding.weight": zeros(LENGTH, WIDTH), **norm("final_layer_norm")}
    for layer in (f"encoder.layers.{i}" for i in range(LAYERS)):
        state |= norm(f"{layer}.layer_norm1") | norm(f"{layer}.layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{layer}.self_attn.{name}", WIDTH, WIDTH)
        state |= linear(f"{layer}.mlp.fc1", MLP, WIDTH) | linear(f"{layer}.mlp.fc2", WIDTH, MLP)
    return {PREFIX + name: value for name, value in state.items()}

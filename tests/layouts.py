"""The same SAE as every library would publish it, for tests to read."""
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_models import Sae, SaeConfig

CONFIG = SaeConfig(8, 12, 4)
BLOCK = "up_blocks.1.attentions.1"
FILES = {"sparsify": ("sae.safetensors", "cfg.json"), "saelens": ("sae_weights.safetensors", "cfg.json"),
         "saelens-flat": ("sae_weights.safetensors", "cfg.json"),
         "dictionary_learning": ("ae.pt", "config.json"), "sdxl-unbox": ("state_dict.pth", "config.json")}


def random_sae(seed: int = 0) -> Sae:
    """Every parameter random, rows of W_dec of unit norm."""
    torch.manual_seed(seed)
    sae = Sae(CONFIG)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
        sae.normalise_decoder()
    return sae


def tensors(sae: Sae, library: str) -> dict[str, Tensor]:
    W_enc, b_enc, W_dec, b_dec = (p.detach() for p in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec))
    return {
        "sparsify": {"encoder.weight": W_enc, "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec},
        "saelens": {"W_enc": W_enc.mT.contiguous(), "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec},
        "dictionary_learning": {"encoder.weight": W_enc, "encoder.bias": b_enc, "b_dec": b_dec,
                                "decoder.weight": W_dec.mT.contiguous(), "k": torch.tensor(4, dtype=torch.int32),
                                "threshold": torch.tensor(-1.0)},
        "sdxl-unbox": {"encoder.weight": W_enc, "latent_bias": b_enc, "pre_bias": b_dec,
                       "decoder.weight": W_dec.mT.contiguous(), "stats_last_nonzero": torch.zeros(12).long()},
    }[library.removesuffix("-flat")]


def configuration(library: str) -> dict[str, Any]:
    return {
        "sparsify": {"expansion_factor": 16, "normalize_decoder": True, "num_latents": 0, "k": 4, "d_in": 8},
        "saelens": {"architecture": "topk", "d_in": 8, "d_sae": 12, "k": 4, "apply_b_dec_to_input": True,
                    "normalize_activations": "none", "metadata": {"sae_lens_version": "6.54.12", "hook_name": BLOCK}},
        "saelens-flat": {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4},
                         "d_in": 8, "d_sae": 12, "dtype": "float32", "hook_name": BLOCK, "apply_b_dec_to_input": True,
                         "normalize_activations": "none", "finetuning_scaling_factor": False},
        "dictionary_learning": {"trainer": {"dict_class": "AutoEncoderTopK", "activation_dim": 8, "dict_size": 12,
                                            "k": 4, "submodule_name": BLOCK}, "buffer": {}},
        "sdxl-unbox": {"n_dirs_local": 12, "d_model": 8, "k": 4, "auxk": 2, "dead_steps_threshold": 10},
    }[library]


def publish(folder: Path, library: str, sae: Sae, **changed: Any) -> Path:
    """The folder as the library leaves it, pickles included; `changed` settings replace those of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    name, sidecar = FILES[library]
    (folder / sidecar).write_text(json.dumps(configuration(library) | changed))
    content = tensors(sae, library)
    if name.endswith(".safetensors"):
        save_file(content, folder / name)
    else:
        torch.save({"state_dict": content} if library == "sdxl-unbox" else content, folder / name)
    return folder / name


def as_safetensors(folder: Path, library: str, sae: Sae, **changed: Any) -> Path:
    """The same tensors and configuration, but as a .safetensors whatever the library does."""
    publish(folder, library, sae, **changed)
    save_file(tensors(sae, library), folder / "any name.safetensors")
    return folder / "any name.safetensors"

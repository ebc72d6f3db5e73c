"""Write an SAE as sparsify or SAELens publish theirs, for other tools to load.

    python -m sae_models.export SAE DEST --to sparsify

Concept names and statistics have no place in these layouts and are left out; hookpoint, base model and residual stay,
under a key of ours that the libraries pass over.
"""
import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from .errors import SaeError
from .formats import Header, read_sae
from .formats.layouts import OUR_KEY
from .sae import Sae
from .storage import write_tensors

SAELENS_VERSION = "6.0.0"
"""The version whose configuration this is; SAELens reads an older one by other rules."""


def to_sparsify(sae: Sae, header: Header, folder: str | Path) -> None:
    """Write `sae.safetensors` and `cfg.json` for sparsify's `SparseCoder.load_from_disk`.

    Raises SaeError when the folder exists.
    """
    config = {"activation": "topk", "expansion_factor": max(1, sae.config.d_sae // sae.config.d_in),
              "normalize_decoder": True, "num_latents": sae.config.d_sae, "k": sae.config.k, "multi_topk": False,
              "skip_connection": False, "transcode": False, "d_in": sae.config.d_in}
    _write(Path(folder), "sae.safetensors", sae.state_dict(), config, header)


def to_saelens(sae: Sae, header: Header, folder: str | Path) -> None:
    """Write `sae_weights.safetensors` and `cfg.json` for SAELens' `SAE.load_from_disk` (version 6).

    Raises SaeError when the folder exists.
    """
    config = {"architecture": "topk", "d_in": sae.config.d_in, "d_sae": sae.config.d_sae, "k": sae.config.k,
              "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none",
              "reshape_activations": "none", "rescale_acts_by_decoder_norm": False,
              "metadata": {"sae_lens_version": SAELENS_VERSION, "hook_name": header.hookpoint}}
    tensors = {"W_enc": sae.encoder.weight.mT, "b_enc": sae.encoder.bias, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    _write(Path(folder), "sae_weights.safetensors", tensors, config, header)


def _write(folder: Path, name: str, tensors: dict[str, Tensor], config: dict[str, Any], header: Header) -> None:
    """Fill a folder under a temporary name, then rename it: there is the whole folder or none."""
    if folder.exists():
        raise SaeError(f"{folder} exists: choose another folder, or delete it first")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    write_tensors(part / name, {key: value.float() for key, value in tensors.items()})
    kept = {"hookpoint": header.hookpoint, "base": header.base, "residual": header.residual}
    (part / "cfg.json").write_text(json.dumps(config | {OUR_KEY: kept}, indent=2), "utf-8")
    os.replace(part, folder)


LIBRARIES: dict[str, Callable[[Sae, Header, Path], None]] = {"sparsify": to_sparsify, "saelens": to_saelens}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sae_models.export", description=__doc__.splitlines()[0])
    parser.add_argument("sae", type=Path, help="any .safetensors SAE that can be loaded")
    parser.add_argument("dest", type=Path, help="folder to make")
    parser.add_argument("--to", choices=LIBRARIES, required=True)
    wanted = parser.parse_args()
    try:
        sae, header = read_sae(wanted.sae)
        LIBRARIES[wanted.to](sae, header, wanted.dest)
    except (SaeError, OSError, SafetensorError) as error:
        sys.exit(str(error))
    left_out = f", without its {len(header.concepts)} concept names" if header.concepts else ""
    print(f"wrote {wanted.dest} for {wanted.to}: {sae.config.d_sae} latents of width {sae.config.d_in}, "
          f"k {sae.config.k}{left_out}")


if __name__ == "__main__":
    main()

"""Runs SAEs in the real SAELens and sparsify, in a process of its own: python tests/peers.py FOLDER

FOLDER holds `x.safetensors` with tokens x [n, d_in], and folders that these libraries shall load: `sparsify*` and
`saelens*`. SAEs that the libraries make and save themselves are added as `sparsify-own` and `saelens-own*`. Beside each
comes `<folder>.safetensors`: z [n, d_sae] and x_hat [n, d_in] as the library computes them.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.peers import make_importable

make_importable()

import sae_lens  # noqa: E402
import sparsify  # noqa: E402
import torch  # noqa: E402
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME as SCALER  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402


def run_sparsify(folder: Path, x: Tensor) -> dict[str, Tensor]:
    sae = sparsify.SparseCoder.load_from_disk(folder)
    acts, indices, pre_acts = sae.encode(x)
    return {"z": torch.zeros_like(pre_acts).scatter(1, indices, acts), "x_hat": sae.decode(acts, indices)}


def run_saelens(folder: Path, x: Tensor) -> dict[str, Tensor]:
    sae = sae_lens.SAE.load_from_disk(folder)
    assert type(sae) is sae_lens.TopKSAE
    if (folder / SCALER).is_file():
        sae.fold_activation_norm_scaling_factor(json.loads((folder / SCALER).read_text())["scaling_factor"])
    z = sae.encode(x)
    return {"z": z, "x_hat": sae.decode(z)}


@torch.no_grad()
def randomise(sae: torch.nn.Module) -> None:
    for parameter in sae.parameters():
        parameter.normal_()


def save_own(folder: Path, d_in: int) -> None:
    coder = sparsify.SparseCoder(d_in, sparsify.SparseCoderConfig(num_latents=3 * d_in, k=5))
    randomise(coder)
    coder.save_to_disk(folder / "sparsify-own")
    for name, options in (("", {}), ("-uncentred", {"apply_b_dec_to_input": False}),
                          ("-by-norm", {"rescale_acts_by_decoder_norm": True}),
                          ("-scaled", {"normalize_activations": "expected_average_only_in"})):
        sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=d_in, d_sae=3 * d_in, k=5, **options))
        randomise(sae)
        sae.save_model(folder / f"saelens-own{name}")
    ActivationScaler(1.7).save(str(folder / "saelens-own-scaled" / SCALER))


def main(folder: Path) -> None:
    torch.manual_seed(0)
    x = load_file(folder / "x.safetensors")["x"]
    save_own(folder, x.shape[1])
    for path in [path for path in folder.iterdir() if path.is_dir()]:
        run = run_sparsify if path.name.startswith("sparsify") else run_saelens
        with torch.no_grad():
            save_file({name: value.contiguous() for name, value in run(path, x).items()}, f"{path}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

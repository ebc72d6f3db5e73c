"""The same weights in SAELens, in sparsify and here encode and decode alike, whoever wrote the file."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import BLOCK, publish, random_sae
from safetensors.torch import load_file, save_file

from sae_models import Concept, Header, SaeError, Statistics, export, read_header, read_sae, write
from tools.setup_host import PEERS

SCRIPT = Path(__file__).parents[1] / "peers.py"
EXPORTS = {"sparsify": export.to_sparsify, "saelens": export.to_saelens}
THEIRS = ("sparsify-own", "saelens-own", "saelens-own-uncentred", "saelens-own-by-norm", "saelens-own-scaled",
          "saelens-flat")


def header_of(sae):
    return Header(sae.config, BLOCK, "sdxl", residual=True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder of SAEs, some written here and some by the libraries, each with what its library makes of x."""
    assert PEERS.exists(), "SAELens and sparsify are missing: run 'python tools/setup_host.py --tests'"
    folder, sae = tmp_path_factory.mktemp("peers"), random_sae()
    save_file({"x": torch.randn(64, 8)}, folder / "x.safetensors")
    for library, write_out in EXPORTS.items():
        write_out(sae, header_of(sae), folder / library)
    publish(folder / "saelens-flat", "saelens-flat", random_sae(1))
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_alike(sae, folder, name):
    x, theirs = load_file(folder / "x.safetensors")["x"], load_file(folder / f"{name}.safetensors")
    latents = sae.encode(x)
    z = torch.zeros_like(theirs["z"]).scatter(1, latents.top_indices, latents.top_acts)
    assert theirs["z"].count_nonzero() > len(x)
    torch.testing.assert_close(z, theirs["z"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(latents), theirs["x_hat"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("library", EXPORTS)
def test_what_we_export_is_the_same_function_in_the_library(compared, library):
    assert_alike(random_sae(), compared, library)


@pytest.mark.parametrize("name", THEIRS)
def test_what_the_library_saves_is_the_same_function_here(compared, name):
    path = next((compared / name).glob("sae*.safetensors"))
    assert_alike(read_sae(path)[0], compared, name)


@pytest.mark.parametrize("library", EXPORTS)
def test_what_is_exported_is_read_back(tmp_path, library):
    sae = random_sae()
    EXPORTS[library](sae, header_of(sae), tmp_path / "out" / library)
    again, header = read_sae(next((tmp_path / "out" / library).glob("*.safetensors")))
    assert header == header_of(sae)
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [library]


def test_the_command_exports_and_says_what_is_left_out(tmp_path):
    sae = random_sae()
    header = Header(sae.config, BLOCK, concepts=(Concept("cat", (3,)),))
    write(tmp_path / "a.safetensors", sae, header, Statistics.unknown(1))
    def run():
        return subprocess.run([sys.executable, "-m", "sae_models.export", tmp_path / "a.safetensors", tmp_path / "out",
                               "--to", "saelens"], cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False)
    assert run().stdout == (f"wrote {tmp_path}/out for saelens: 12 latents of width 8, k 4, "
                            f"without its 1 concept names\n")
    assert read_header(tmp_path / "out" / "sae_weights.safetensors").hookpoint == BLOCK
    again = run()
    assert again.returncode == 1 and again.stderr == (f"{tmp_path}/out exists: choose another folder, or delete it "
                                                      f"first\n")


@pytest.mark.parametrize("library", EXPORTS)
def test_an_export_that_fails_leaves_no_folder_behind_its_name(tmp_path, monkeypatch, library):
    def fail(*_):
        raise OSError("no space left")
    monkeypatch.setattr(export, "write_tensors", fail)
    sae = random_sae()
    with pytest.raises(OSError, match="no space"):
        EXPORTS[library](sae, header_of(sae), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    EXPORTS[library](sae, header_of(sae), tmp_path / "out")
    assert read_header(next((tmp_path / "out").glob("*.safetensors"))).residual


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    sae = random_sae()
    with pytest.raises(SaeError, match="exists: choose another folder"):
        export.to_sparsify(sae, header_of(sae), tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"

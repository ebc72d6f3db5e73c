"""Pickles become .safetensors: the numbers are the same, and nothing in a pickle runs."""
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import BLOCK, FILES, publish, random_sae
from test_archive import published

from benchmarks.minicanvas import models  # noqa: F401
from sae_models import Header, SaeError, read_header, read_rows, read_sae, write
from sae_models.concepts import Statistics
from sae_models.convert import __main__ as command
from sae_models.convert import papers, pickles, read_any
from sae_models.convert.papers import Params
from sae_models.formats import read_statistics

from comfy.model_sampling import ModelSamplingDiscrete  # isort: skip  (models puts ComfyUI on the path)

REPO = Path(__file__).resolve().parents[2]
PICKLED = [library for library, (name, _) in FILES.items() if not name.endswith(".safetensors")]
NO_PARAMS: dict[str, Params] = {}


def convert(*arguments, command=("-m", "sae_models.convert"), folder=REPO):
    return subprocess.run([sys.executable, *command, *map(str, arguments)], cwd=folder,
                          capture_output=True, text=True, timeout=120, check=False)


def classes(steps=100, prompts=3):
    """Latents of three classes as the papers pickle them: each class has one loud latent of its own, one is common."""
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.rand(prompts, steps, 12, generator=generator) * 0.1 for name in ("Cats", "Dogs", "Towers")}
    for latent, tensor in zip((3, 7, 10), found.values(), strict=True):
        tensor[..., latent] += 1
        tensor[..., 5] += 4
    return {name: tensor.half() for name, tensor in found.items()}


def dump(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


class Malicious:
    """Makes a file when it is unpickled freely."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("library", PICKLED)
def test_a_pickled_sae_is_the_same_sae(tmp_path, library):
    sae = random_sae()
    again, header = read_any(publish(tmp_path / f"unet.{BLOCK}_k4" / "final", library, sae))
    assert header == Header(sae.config, BLOCK, residual=library == "sdxl-unbox")
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_command_writes_one_file_and_says_so(tmp_path):
    sae = random_sae()
    source = publish(tmp_path / "unbox", "sdxl-unbox", sae)
    concepts = dump(tmp_path / "cls_latents_dict.pkl", classes())
    torch.save({name: {"percentile": 99.0, "multiplier": -5.0} for name in classes()}, tmp_path / "class_params.pth")
    done = convert(source, tmp_path / "out.safetensors", "--concepts", concepts, "--params",
                   tmp_path / "class_params.pth", "--hookpoint", f"unet.{BLOCK}", "--base", "sdxl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"wrote {tmp_path}/out.safetensors: 12 latents of width 8, k 4, at {BLOCK}, 3 concepts\n")
    again, header = read_sae(tmp_path / "out.safetensors")
    assert (header.hookpoint, header.base, header.residual) == (BLOCK, "sdxl", True)
    assert [(c.name, c.latents, c.kind) for c in header.concepts] == [
        ("Cats", (3,), "object"), ("Dogs", (7,), "object"), ("Towers", (10,), "object")]
    assert "percentile 99, multiplier -5" in header.concepts[0].description
    assert torch.equal(again.W_dec, sae.W_dec)
    assert {path.name for path in tmp_path.iterdir()} == {"unbox", "out.safetensors", concepts.name, "class_params.pth"}


def test_the_registrys_copy_converts_what_a_refusal_says_to_convert(tmp_path):
    """The sentence of a node, its command run from anywhere, in a copy as ComfyUI-Manager leaves it."""
    pack = tmp_path / "custom_nodes" / "comfyui-saemnesia"
    for path in published():
        (pack / path.relative_to(REPO)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, pack / path.relative_to(REPO))
    source = publish(tmp_path / "models" / f"unet.{BLOCK}_k4" / "final", "sdxl-unbox", random_sae())
    source.with_name("saemnesia.json").write_text(json.dumps({"base": "sdxl"}))  # as it was downloaded
    with pytest.raises(SaeError, match="state_dict.pth is a pickle, which can run code") as refused:
        read_header(source)
    python, script, named = re.findall('"([^"]+)"', str(refused.value))
    assert (python, script, named) == (sys.executable, str(REPO / "convert.py"), str(source))
    done = convert(named, command=("-P", pack / "convert.py"), folder=tmp_path)
    assert done.stderr == "" and done.stdout.startswith(f"wrote {source.with_suffix('.safetensors')}: 12 latents")
    assert read_header(source.with_suffix(".safetensors")) == Header(
        random_sae().config, BLOCK, "sdxl", residual=True)
    assert "is there already: say after state_dict.pth" in convert(named).stderr


@pytest.mark.parametrize(("version", "refused"), [("2.9.1", True), ("2.10.0", False), ("1.13.1+cu117", True),
                                                  ("2.12.0a0+git12", False)])
def test_a_torch_that_pickles_can_trick_opens_none(tmp_path, monkeypatch, version, refused):
    path = publish(tmp_path, "dictionary_learning", random_sae())
    means = dump(tmp_path / "a.pkl", classes(steps=2))
    monkeypatch.setattr(torch, "__version__", version)
    for read, file in ((read_any, path), (papers.read_means, means)):
        if not refused:
            assert read(file)
            continue
        with pytest.raises(SaeError, match=rf"torch {re.escape(version)} .*CVE-2025-32434, CVE-2026-24747.*2\.10"):
            read(file)


@pytest.mark.parametrize(("arguments", "says"), [
    (("gone.pt", "out.safetensors"), "there is no file gone.pt"),
    (("sae.safetensors", "out.pt"), "expected a name that ends with .safetensors"),
    (("sae.safetensors", "no/folder/out.safetensors"), "there is no folder .*no/folder"),
    (("sae.safetensors", "out.safetensors", "--concepts", "gone.pkl"), "there is no file gone.pkl"),
    (("sae.safetensors", "out.safetensors", "--params", "x.pth"), "give both"),
])
def test_a_slip_on_the_command_line_is_one_sentence(tmp_path, monkeypatch, arguments, says):
    publish(tmp_path, "sparsify", random_sae())
    monkeypatch.setattr(sys, "argv", ["convert", *(a if a.startswith("--") else str(tmp_path / a) for a in arguments)])
    with pytest.raises(SystemExit, match=says):
        command.main()
    assert not list(tmp_path.glob("out*"))


def test_statistics_are_the_papers_by_noise_level(tmp_path):
    found = classes()
    means = papers.read_means(dump(tmp_path / "a.pkl", found))
    header, statistics = papers.add_concepts(Header(random_sae().config), means, NO_PARAMS, "object")
    assert [concept.latents for concept in header.concepts] == [(3,), (7,), (10,)]
    assert list(statistics.sigmas) == sorted(statistics.sigmas) and len(statistics.sigmas) == 100
    cats = found["Cats"].float()
    for row in (0, 42, 99):                                       # step number, so the last column is step 0
        theta = torch.stack([c.float()[:, row, 3].mean() for c in found.values()]).mean()
        assert statistics.means[0, 99 - row] == pytest.approx(cats[:, row, 3].mean().item(), rel=1e-3)
        assert statistics.thresholds[0, 99 - row] == pytest.approx(theta.item(), rel=1e-3)
    sae = random_sae()
    write(tmp_path / "a.safetensors", sae, header, statistics)
    rows = read_rows(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors"), [header.concepts[1]])
    assert torch.equal(rows.statistics.thresholds, statistics.thresholds[1:2])


@pytest.mark.parametrize(("steps", "timesteps"), [(100, (991, 981, 1)), (50, (981, 961, 1)), (999, (999, 998, 1))])
def test_rows_have_the_noise_levels_the_host_gives_their_timesteps(steps, timesteps):
    host = ModelSamplingDiscrete()
    sigmas = papers.sigmas(steps)
    for place, timestep in zip((0, 1, -1), timesteps, strict=True):
        assert sigmas[place] == pytest.approx(host.sigma(torch.tensor(timestep)).item(), rel=1e-4)


def test_a_percentile_is_a_number_of_latents(tmp_path):
    assert [papers.top_n(p, 20480) for p in (99.999, 99.995, 99.99, 99.9)] == [1, 2, 3, 21]
    score = torch.randn(20480, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert papers.top_n(99.95, 20480) == int((score > score.quantile(0.9995)).sum())
    means = papers.read_means(dump(tmp_path / "a.pkl", classes()))
    params = {"Cats": Params(99.0, -1.0), "Dogs": Params(90.0, -1.0), "Towers": Params(75.0, -1.0)}
    header, statistics = papers.add_concepts(Header(random_sae().config), means, params, "style")
    assert [len(c.latents) for c in header.concepts] == [1, 2, 3]
    assert [c.latents[0] for c in header.concepts] == [3, 7, 10]
    assert statistics.means.shape == (6, 100)


@pytest.mark.parametrize("content", [
    lambda mark: Malicious(mark),
    lambda mark: {"Cats": Malicious(mark)},
    lambda mark: {"Cats": torch.zeros(1, 2, 3), "Dogs": [Malicious(mark)]},
])
def test_a_malicious_pickle_is_refused_without_running(tmp_path, content):
    path = dump(tmp_path / "bad.pkl", content(tmp_path / "ran"))
    with pytest.raises(SaeError, match=r"bad.pkl asks to run posix.mkdir"):
        papers.read_means(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()                            # so it would have run


def test_malice_inside_a_tensors_numbers_is_refused_without_running(tmp_path):
    inner = io.BytesIO()
    torch.save(Malicious(tmp_path / "ran"), inner, _use_new_zipfile_serialization=False)

    class Numbers:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)
    path = dump(tmp_path / "bad.pkl", {"Cats": Numbers()})
    with pytest.raises(SaeError, match="bad.pkl is damaged or no pickle of tensors"):
        papers.read_means(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [read_any, papers.read_params])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_is_refused_without_running(tmp_path, read, zipped):
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": Malicious(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    says = r"holds more than tensors, so it is not opened \(it asks for posix.mkdir\)"
    with pytest.raises(SaeError, match=says) as bad:
        read(path)
    assert "weights_only" not in str(bad.value) and bad.value.__cause__ is None
    assert not (tmp_path / "ran").exists()


def test_what_is_handed_out_cannot_be_changed_by_the_pickle(tmp_path):
    """BUILD sets attributes on whatever the pickle got hold of."""
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93N}\x8c\x0c__defaults__)s\x86b.")
    with pytest.raises(SaeError, match="bad.pkl is damaged or no pickle of tensors"):
        papers.read_means(path)


def test_one_class_is_in_memory_at_a_time(tmp_path):
    size = 2 * 50 * 5000 * 2
    path = dump(tmp_path / "a.pkl", {str(i): torch.zeros(2, 50, 5000).half() for i in range(12)})
    tracemalloc.start()
    means = pickles.load_tensors(path, lambda tensor: tensor.float().mean((0, 2)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(means) == 12
    assert size < peak < 3 * size


@pytest.mark.parametrize(("content", "says"), [
    ({"Cats": torch.zeros(2, 3)}, r"expected \[prompts, steps, d_sae\]"),
    ({"Cats": torch.zeros(2, 1000, 3)}, r"expected \[prompts, steps, d_sae\]"),
    ({"Cats": torch.zeros(2, 3, 4)}, "two classes or more"),
    ({"Cats": torch.zeros(2, 3, 4), "Dogs": torch.zeros(2, 3, 5)}, "two classes or more of one shape"),
    ({"Cats": torch.zeros(2, 3, 4), "Dogs": torch.full((2, 3, 4), float("inf"))}, "not finite"),
    ({"Cats": 1}, "a dictionary of tensors"), ([1], "a dictionary of tensors"), ({}, "a dictionary of tensors"),
])
def test_a_pickle_of_something_else_says_what_was_expected(tmp_path, content, says):
    with pytest.raises(SaeError, match=says):
        papers.read_means(dump(tmp_path / "a.pkl", content))


@pytest.mark.parametrize("content", [
    [], torch.ones(2), {"Cats": 1}, {"Cats": {"percentile": 99}}, {"Cats": {"percentile": [1], "multiplier": 1}},
    {"Cats": {"percentile": 100.0, "multiplier": 1.0}},
])
def test_parameters_of_something_else_say_what_was_expected(tmp_path, content):
    torch.save(content, tmp_path / "p.pth")
    with pytest.raises(SaeError, match=r"p.pth is not what was expected|expected a percentile"):
        papers.read_params(tmp_path / "p.pth")


def test_concepts_that_do_not_belong_to_the_sae_are_refused(tmp_path):
    means = papers.read_means(dump(tmp_path / "a.pkl", classes(steps=4)))
    config = random_sae().config
    with pytest.raises(SaeError, match="no parameters for Dogs, Towers"):
        papers.add_concepts(Header(config), means, {"Cats": Params(99, 1)}, "object")
    header, _ = papers.add_concepts(Header(config), means, NO_PARAMS, "object")
    with pytest.raises(SaeError, match="has 3 concepts already"):
        papers.add_concepts(header, means, NO_PARAMS, "object")
    with pytest.raises(SaeError, match="classes have 11 latents and the SAE has 12"):
        papers.add_concepts(Header(config), {n: m[:, :11] for n, m in means.items()}, NO_PARAMS, "object")


def test_an_sae_with_concepts_keeps_them(tmp_path):
    means = papers.read_means(dump(tmp_path / "a.pkl", classes(steps=4)))
    sae = random_sae()
    header, statistics = papers.add_concepts(Header(sae.config), means, NO_PARAMS, "object")
    write(tmp_path / "a.safetensors", sae, header, statistics)
    assert convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors").stderr == ""
    again = read_header(tmp_path / "b.safetensors")
    assert again == header
    kept = read_statistics(tmp_path / "b.safetensors", again)
    assert isinstance(kept, Statistics) and torch.equal(kept.means, statistics.means)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(cut=st.integers(0, 3000), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3))
def test_a_damaged_pickle_is_read_or_one_sentence(tmp_path, cut, flips):
    data = bytearray(pickle.dumps(classes(steps=2, prompts=1)))
    for place, byte in flips:
        data[place % len(data)] = byte
    path = tmp_path / "a.pkl"
    path.write_bytes(data if cut > len(data) else data[:cut])
    try:
        assert all(mean.shape == (2, 12) for mean in papers.read_means(path).values())
    except SaeError as error:
        assert str(error) and "\n" not in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(cut=st.integers(0, 6000), flips=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=3))
def test_a_damaged_torch_file_is_read_or_one_sentence(tmp_path, cut, flips):
    path = publish(tmp_path, "dictionary_learning", random_sae())
    data = bytearray(path.read_bytes())
    for place, byte in flips:
        data[place % len(data)] = byte
    path.write_bytes(data if cut > len(data) else data[:cut])
    try:
        assert read_any(path)[0].config == random_sae().config
    except SaeError as error:
        assert str(error) and "\n" not in str(error)


def packed(path, source):
    """The archive with its parts packed: zeros take no room."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))


def test_a_small_file_that_becomes_gigabytes_is_not_opened(tmp_path):
    torch.save({"W_dec": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    packed(tmp_path / "packed.pt", tmp_path / "plain.pt")
    torch.save({"W_dec": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "repeated.pt")
    dump(tmp_path / "repeated.pkl", {"Cats": torch.zeros(1).expand(10, 100, 10**7)})
    for name in ("packed.pt", "repeated.pt"):
        assert (tmp_path / name).stat().st_size < 10_000
        with pytest.raises(SaeError, match=f"{name} .*so it is not opened"):
            read_any(tmp_path / name)
    with pytest.raises(SaeError, match="repeated.pkl has a tensor of shape .* larger than what the file holds of it"):
        papers.read_means(tmp_path / "repeated.pkl")

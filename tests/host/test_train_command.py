"""The training command on stored activations: one process, several, and one that is killed."""
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from made_maps import SUBJECTS, make_maps
from small_model import write_sae

from sae_models.formats import read_header, read_headers, read_rows, read_sae
from sae_models.learning.maps import Maps, Shards
from sae_models.learning.origin import Origin, keeping

ROOT = Path(__file__).resolve().parents[2]
ONE = (sys.executable, "-m", "sae_models.learning.train")
TWO = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
       "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "sae_models.learning.train")
FOUR = tuple("4" if part == "2" else part for part in TWO)
CHUNKS, HELD_OUT = 4, 1_000_000


@pytest.fixture(scope="module")
def activations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    origin = Origin(SUBJECTS, 24, "up_blocks.1.attentions.1", "sd15", False, CHUNKS, [HELD_OUT], {"model": "toy"})
    shards = Shards(folder, make_maps, origin.as_json())
    for number in (*range(CHUNKS), HELD_OUT):
        shards.make(number)
    return folder


def start(command: tuple[str, ...], activations: Path, out: Path, *options: str) -> subprocess.Popen:
    given = ("--latents", "48", "--k", "6", "--batch", "16", "--lr", "0.003", "--unsupervised-steps", "100",
             "--supervised-steps", "100", "--push", "0", *options)
    return subprocess.Popen([*command, str(activations), "--out", str(out), *given], cwd=ROOT, text=True,
                            start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(*args) -> str:
    process = start(*args)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


def killed(command: tuple[str, ...], activations: Path, out: Path, *options: str) -> Path:
    """The checkpoint of a run that was killed as soon as it had one, with the processes that torchrun started: they
    have process groups of their own and would go on writing."""
    process = start(command, activations, out, "--checkpoint-seconds", "0", *options)
    checkpoint = out.with_name(out.name + ".training")
    while not checkpoint.exists():
        assert process.poll() is None and not time.sleep(0.02)
    all_of_it = [*psutil.Process(process.pid).children(recursive=True), process]
    for each in reversed(all_of_it):
        each.kill()
    for each in all_of_it:
        each.wait()
    assert not out.exists()
    return checkpoint


def assert_alike(one: Path, other: Path) -> None:
    """The same concepts and, but for the order in which sums are made, the same weights."""
    assert [c.latents for c in read_header(one).concepts] == [c.latents for c in read_header(other).concepts]
    for name, value in read_sae(one)[0].state_dict().items():
        assert torch.allclose(value, read_sae(other)[0].state_dict()[name], atol=2e-3), name
    reports = [json.loads((path.parent / "sae.report.json").read_text()) for path in (one, other)]
    assert abs(reports[0]["fvu"] - reports[1]["fvu"]) < 0.002


@pytest.fixture(scope="module")
def alone(activations, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "sae.safetensors"
    said = run(ONE, activations, out)
    assert "cat" in said and "FVU" in said
    return out


def test_it_leaves_a_file_with_the_concepts_and_a_report(alone):
    header = read_header(alone)
    assert [concept.name for concept in header.concepts] == [subject.name for subject in SUBJECTS]
    assert (header.base, header.hookpoint, header.training["model"]) == ("sd15", "up_blocks.1.attentions.1", "toy")
    report = json.loads((alone.parent / "sae.report.json").read_text())
    assert report["fvu"] < 0.5 and len(report["concepts"]) == len(SUBJECTS)
    assert (alone.parent / "sae.report.svg").read_text().startswith("<svg")
    assert sorted(path.name for path in alone.parent.iterdir()) == [
        "sae.report.json", "sae.report.svg", "sae.safetensors"]


def test_two_processes_learn_what_one_does(alone, activations, tmp_path):
    out = tmp_path / "sae.safetensors"
    run(TWO, activations, out, "--memory", "1")
    assert_alike(alone, out)


@pytest.mark.parametrize("processes", [TWO, FOUR], ids=["one team", "two teams"])
def test_processes_that_share_an_saes_latents_learn_what_one_does(alone, activations, tmp_path, processes):
    out = tmp_path / "sae.safetensors"
    run(processes, activations, out, "--shards", "2")
    assert_alike(alone, out)


def test_a_run_whose_latents_are_split_goes_on_from_its_checkpoint_in_one_process(alone, activations, tmp_path):
    out = tmp_path / "sae.safetensors"
    killed(TWO, activations, out, "--shards", "2")
    run(ONE, activations, out)
    assert_alike(alone, out)


@pytest.fixture(scope="module")
def two_places(tmp_path_factory) -> Path:
    """Activations of two places, of the same calls."""
    folder = tmp_path_factory.mktemp("places")
    origins = [Origin(SUBJECTS, 24, f"up_blocks.1.attentions.{i}", "sd15", False, CHUNKS, [HELD_OUT], {"model": "toy"})
               for i in (0, 1)]

    def make(number: int) -> dict[str, Maps]:
        maps = make_maps(number)
        flipped = replace(maps, tokens=maps.tokens.flip(2), without=maps.without.flip(2))
        return {origin.hookpoint: part for origin, part in zip(origins, (maps, flipped), strict=True)}
    kept = keeping(folder, origins, make)
    for number in (*range(CHUNKS), HELD_OUT):
        kept(number)
    return folder


def test_processes_learn_several_places_as_one_does(two_places, tmp_path):
    whole, shared = tmp_path / "one" / "sae.safetensors", tmp_path / "two" / "sae.safetensors"
    run(ONE, two_places, whole)
    killed(FOUR, two_places, shared, "--shards", "2")
    run(TWO, two_places, shared)
    headers = read_headers(whole)
    assert [h.hookpoint for h in headers] == ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
    assert [h.latents for h in headers] == [h.latents for h in read_headers(shared)]
    for header in headers:
        one, other = (read_sae(path, header.hookpoint)[0].state_dict() for path in (whole, shared))
        for name, value in one.items():
            assert torch.allclose(value, other[name], atol=4e-3), name


@pytest.mark.parametrize(("options", "says"), [
    (("--shards", "3"), "expected a number of shards that divides the 2 processes, got 3"),
    (("--shards", "2", "--latents", "49"), r"expected d_sae \(49\) to be a multiple of the 2 shards"),
    (("--shards", "2", "--loss", "published"), "leave out --shards"),
])
def test_latents_that_cannot_be_split_are_refused(activations, tmp_path, options, says):
    process = start(TWO, activations, tmp_path / "sae.safetensors", *options)
    assert re.search(says, process.communicate(timeout=120)[0]) and process.returncode


def test_a_killed_run_goes_on_from_its_checkpoint(alone, activations, tmp_path):
    out = tmp_path / "sae.safetensors"
    checkpoint = killed(ONE, activations, out)
    run(ONE, activations, out)
    for name, value in read_sae(alone)[0].state_dict().items():
        assert torch.equal(value, read_sae(out)[0].state_dict()[name]), name
    assert not checkpoint.exists()


def test_a_mistake_is_one_sentence(tmp_path):
    process = start(ONE, tmp_path / "nowhere", tmp_path / "sae.safetensors")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in said
    assert said.startswith("error: there are no stored activations")


def test_without_a_second_stage_concepts_are_found_in_the_sae_by_score(activations, tmp_path):
    sae, concepts = tmp_path / "plain.safetensors", tmp_path / "top3.safetensors"
    run(ONE, activations, sae, "--supervised-steps", "0")
    assert [concept.name for concept in read_header(sae).concepts] == [subject.name for subject in SUBJECTS]
    subprocess.run([sys.executable, "-m", "sae_models.learning.find", sae, activations, "--out", concepts,
                    "--neurons", "3"], cwd=ROOT, check=True)
    header = read_header(concepts)
    assert [(c.name, len(c.latents)) for c in header.concepts] == [(subject.name, 3) for subject in SUBJECTS]
    assert header.hookpoint == "up_blocks.1.attentions.1"
    rows = read_rows(concepts, header, list(header.concepts))
    plain = read_sae(sae)[0]
    assert all(plain.W_dec.eq(row).all(1).any() for row in rows.W_dec)


@pytest.fixture(scope="module")
def plain(activations, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    run(ONE, activations, out, "--supervised-steps", "0")
    return out


@pytest.mark.parametrize("loss", ["carry", "published"])
def test_an_sae_that_is_there_is_taught_the_concepts(plain, activations, tmp_path, loss):
    out = tmp_path / "taught.safetensors"
    run(ONE, activations, out, "--start", str(plain), "--latents", "7", "--supervised-steps", "60", "--loss", loss)
    before, after = read_header(plain), read_header(out)
    assert after.config == before.config and after.training["start"].startswith("plain.safetensors ")
    assert [c.latents for c in after.concepts] == [c.latents for c in before.concepts]
    first, second = (json.loads((path.parent / f"{path.stem}.report.json").read_text()) for path in (plain, out))
    assert [row["before"] for row in second["concepts"]] == pytest.approx([row["before"] for row in first["concepts"]])
    assert sum(row["score"] for row in second["concepts"]) > sum(row["score"] for row in first["concepts"])


def test_an_sae_of_another_block_cannot_be_started_from(activations, tmp_path):
    write_sae(tmp_path / "other.safetensors", d_in=24, hookpoint="mid_block.attentions.0")
    process = start(ONE, activations, tmp_path / "sae.safetensors", "--start", str(tmp_path / "other.safetensors"))
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in said
    assert "other.safetensors cannot be gone on from: it reads mid_block.attentions.0 (width 24" in said

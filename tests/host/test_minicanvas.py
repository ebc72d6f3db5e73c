"""What an artist sees: MiniCanvas's committed weights and concepts in a real ComfyUI, looked at by the judge."""
from dataclasses import replace

import pytest
import torch

from benchmarks.minicanvas import bench, find, swap, table
from benchmarks.minicanvas.checkpoint import NAME, WEIGHTS
from benchmarks.minicanvas.judge import load_judge
from benchmarks.minicanvas.paint import base_graph, decode_png, link_bench_nodes, node, paint
from sae_models import read_headers
from tools.comfy_host import COMFY, ComfyHost

SEED = 31_000
ERASE = "SAEmnesiaErase"
PLACES = 6


@pytest.fixture(scope="module")
def host():
    assert (COMFY / "models" / "checkpoints" / NAME).exists(), "run `make checkpoint` first"
    link_bench_nodes()
    with ComfyHost() as running:
        yield running


def figures(host, name: str, method: str) -> table.Score:
    task = table.task_of(name)
    return table.score(task, load_judge().verdict(paint(host, bench.METHODS[method], task, SEED)))


def test_the_model_paints_what_is_said(host):
    task = bench.any_scenes(24)
    right = table.rights(task.shots, load_judge().verdict(paint(host, bench.METHODS["none"], task, SEED)))
    assert right["object"].float().mean() > 0.9
    assert right["style"].float().mean() > 0.97 and right["ground"].float().mean() > 0.97


@pytest.mark.parametrize("name", ["cat", "noto style", "blue ground"])
def test_what_is_switched_off_goes_and_the_rest_of_the_scene_stays(host, name):
    erased = figures(host, name, "ours")
    assert erased.UA > 65
    assert erased.IRA > 91 and erased.CRA > 87


def test_what_is_swapped_is_painted_as_the_other_and_the_rest_of_the_scene_stays(host):
    wanted = swap.Swap.read("cat -> rose")
    shots = wanted.scenes(9, said=True)
    pictures = paint(host, swap.swapping(wanted.text, NAME), table.Task("object", (), tuple(shots)), SEED)
    seen = swap.figures(wanted, shots, load_judge().verdict(pictures))
    assert seen["new"] > 70 and seen["old"] < 20 and seen["kept"] > 80


def unsaid(task: table.Task) -> table.Task:
    return replace(task, shots=tuple(shot for shot in task.shots if not task.says(shot)))


@pytest.mark.parametrize("task", [table.task_of("cat"), table.several("object", 9, 3, range(24))[2]],
                         ids=["one", "nine at once"])
def test_most_pictures_without_the_concept_are_the_same_to_the_bit(host, task):
    plain, erased = (paint(host, bench.METHODS[name], unsaid(task), SEED) for name in ("none", "ours"))
    change = (plain - erased).abs().flatten(1).mean(1)
    assert change.median() == 0 and change.mean() < 0.05


@pytest.mark.parametrize(("kind", "values"), [
    ("TomePatchModel", {"ratio": 0.5}),
    ("HyperTile", {"tile_size": 32, "swap_size": 1, "max_depth": 1, "scale_depth": False}),
], ids=["ToMe", "HyperTile"])
def test_beside_what_people_add_what_is_said_goes_and_what_is_not_stays(host, kind, values):
    def painted(text: str, *with_nodes: str) -> torch.Tensor:
        made = base_graph([text], SEED, steps=4)
        for name in with_nodes:
            settings = {"sae": ["sae", 0], "concepts": "cat", "actuator": "amount", "start": 0.0, "end": 1.0,
                        "apply_to": "conditional only"} if name == ERASE else values
            made["sae"] = node("SAEmnesiaLoadSAE", sae_name=NAME, hookpoint="")
            made[name] = node(name, model=made["sampler"]["inputs"]["model"], **settings)
            made["sampler"]["inputs"]["model"] = [name, 0]
        return decode_png(host.run(made).images[0])
    said, unsaid = "a cat and a castle, noto style, blue ground", "a dog and a castle, noto style, blue ground"
    assert not torch.equal(painted(said, kind), painted(said))
    assert not torch.equal(painted(said, kind), painted(said, kind, ERASE))
    assert torch.equal(painted(said, ERASE, kind), painted(said, kind, ERASE))
    assert torch.equal(painted(unsaid, kind), painted(unsaid, kind, ERASE))


def test_a_concept_found_without_an_sae_says_what_it_removes(host):
    path = find.path_of(find.FILE)
    try:
        made = find.find_graph(["frog"], pictures=12)
        made["find"]["inputs"]["neurons"] = 1
        host.run(made)
        places = read_headers(path)
    finally:
        path.unlink(missing_ok=True)
    assert len(places) == PLACES and all(place.hookpoint.endswith(".attn2") for place in places)
    assert places[0].concepts[0].measured["removed"] > 0.4
    assert places[0].concepts[0].measured["touched"] < 0.02


def test_every_concept_of_the_committed_file_has_neurons_at_every_place():
    headers = read_headers(WEIGHTS / "concepts.safetensors")
    assert len(headers) == PLACES
    for header in headers:
        assert {concept.name for concept in header.concepts} == set(table.all_names())
        assert len({latent for concept in header.concepts for latent in concept.latents}) == \
            sum(len(concept.latents) for concept in header.concepts)

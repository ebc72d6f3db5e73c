"""What an artist sees: MiniCanvas's committed weights and SAE in a real ComfyUI, looked at by the judge."""
import pytest
import torch

from benchmarks.minicanvas import bench, find, table
from benchmarks.minicanvas.checkpoint import NAME, WEIGHTS
from benchmarks.minicanvas.icons import OBJECTS, STYLES
from benchmarks.minicanvas.judge import load_judge
from benchmarks.minicanvas.methods import thinned
from sae_models import read_header, read_headers
from tools.comfy_host import COMFY, ComfyHost

SEED = 31_000
ONE_OF_EACH = tuple((o, o % len(STYLES)) for o in range(0, len(OBJECTS), 2))


@pytest.fixture(scope="module")
def host():
    assert (COMFY / "models" / "checkpoints" / NAME).exists(), "run `make checkpoint` first"
    bench.link_bench_nodes()
    with ComfyHost(threads=2) as running:
        yield running


def score(host, method: str, task: table.Task) -> table.Score:
    task = thinned(task)
    return table.score(task, load_judge().verdict(bench.draw(host, bench.METHODS[method], task, SEED)))


def test_the_model_draws_what_is_asked(host):
    verdict = load_judge().verdict(bench.draw(host, bench.METHODS["none"], table.Task("object", (), ONE_OF_EACH), SEED))
    obj, style = (torch.tensor(side) for side in zip(*ONE_OF_EACH, strict=True))
    assert (verdict.object == obj).float().mean() > 0.9
    assert (verdict.style == style).float().mean() > 0.9


def test_switching_a_neuron_off_takes_the_object_out_and_keeps_the_others(host):
    erased = score(host, "ablate", table.object_task([OBJECTS.index("cat")]))
    assert erased.UA >= 80 and erased.IRA >= 90 and erased.CRA >= 85


def test_switching_a_neuron_off_takes_the_style_out_and_keeps_the_others(host):
    erased = score(host, "ablate", table.style_task([STYLES.index("noto")]))
    assert erased.UA >= 80 and erased.IRA >= 90 and erased.CRA >= 85


def test_a_picture_without_the_concept_does_not_change(host):
    pairs = tuple((OBJECTS.index(o), STYLES.index("fluent")) for o in ("rocket", "castle", "pizza", "key"))
    task = table.Task("object", (OBJECTS.index("cat"),), pairs)
    plain, erased = (bench.draw(host, bench.METHODS[name], task, SEED) for name in ("none", "ablate"))
    same = (plain == erased).flatten(1).all(1)
    assert same.float().mean() >= 0.5
    assert (plain - erased).abs().mean() < 0.01


def test_a_concept_found_without_an_sae_is_gone_and_says_so(host):
    path = COMFY / "models" / "sae" / f"{find.FILE}.safetensors"
    path.unlink(missing_ok=True)
    try:
        host.run(find.find_graph("cat", 32), timeout=1800)
        places, task = read_headers(path), table.object_task([OBJECTS.index("cat")])
        cats = table.Task("object", task.erased, tuple(pair for pair in task.pairs if pair[0] in task.erased))
        drawn = bench.draw(host, bench.Method("found", find.erase_found), cats, SEED)
    finally:
        path.unlink(missing_ok=True)
    assert [place.hookpoint for place in places] == ["down_blocks.1.attentions.0.transformer_blocks.0.attn2"]
    assert places[0].concepts[0].measured["removed"] > 0.85
    assert places[0].concepts[0].measured["touched"] < 0.02
    assert (load_judge().verdict(drawn).object != OBJECTS.index("cat")).float().mean() >= 0.8


def test_every_object_and_style_has_one_neuron_of_its_own():
    concepts = read_header(WEIGHTS / "sae.safetensors").concepts
    assert {c.name for c in concepts} == {*OBJECTS, *(f"{style} style" for style in STYLES)}
    latents = [c.latents for c in concepts]
    assert all(len(own) == 1 for own in latents) and len(set(latents)) == len(concepts)

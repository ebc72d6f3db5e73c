"""*Find a concept* in A1111 and Forge without a host: their sampler, prompt encoder, queue and progress are those of
the stand-in (fake_webui.py), the UNet is the real one of `ldm`, or the one of ComfyUI from which Forge's comes."""
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from canvas_graphs import erase, graph, latents
from fake_webui import Webui, hooks, sd_model, unet_of
from host_graphs import node
from small_model import NAME, UNET_CONFIG, write_places
from webui_model import UNET, random_unet

from sae_models import SaeError, hookpoint, read_headers
from sae_models.learning import search, words
from tools.comfy_host import COMFY

from benchmarks.minicanvas import models as comfy_models  # isort: skip  (puts ComfyUI on the path)
import comfy.ops  # isort: skip

FEW_WORDS = Path(__file__).parents[1] / "few_words.json"
SMALL = UNET | {"model_channels": 32, "channel_mult": [1, 2], "num_heads": 2}
WISH = {"words": "cat", "pictures": 8, "side": 64, "cfg": 2.0}
CAT = {"prompts": [["a photo of cat"]]}


@pytest.fixture(autouse=True)
def few_words(monkeypatch) -> None:
    """To be told from: each pair of them is a prompt that is encoded."""
    monkeypatch.setattr(words, "COMMON", json.loads(FEW_WORDS.read_text("utf-8")))
    monkeypatch.setattr(search, "_painted", {})  # what another test's stopped search left


def comfy_unet(**changes) -> torch.nn.Module:
    unet = comfy_models.UNetModel(**UNET_CONFIG | changes, operations=comfy.ops.disable_weight_init)
    return comfy_models.initialised(unet).eval().requires_grad_(False)


def host_of(models: Path, kind: str) -> Webui:
    torch.manual_seed(0)
    forge, sizes = kind == "forge", {name: SMALL[name] for name in ("model_channels", "channel_mult", "num_heads")}
    unet = comfy_unet(**sizes) if forge else random_unet(SMALL)
    return Webui(models, sd_model(unet, forge=forge, sgm=kind == "sdxl"), forge=forge)


@pytest.fixture(params=["a1111", "sdxl", "forge"])
def webui(request, tmp_path) -> Iterator[Webui]:
    with host_of(tmp_path, request.param).installed() as host:
        yield host


@pytest.fixture
def a1111(tmp_path) -> Iterator[Webui]:
    with host_of(tmp_path, "a1111").installed() as host:
        yield host


def find(host: Webui, **changes):
    from saemnesia_webui.find import Wish
    return host.module.FINDER.find(Wish(**WISH | changes))


def files(host: Webui) -> list[str]:
    return sorted(path.name for path in (host.models / "sae").glob("*"))


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def test_a_word_is_found_at_every_cross_attention_and_erased_from_then_on(webui):
    plain = webui.generate(False, **CAT)
    found = find(webui)
    assert found.said[0].startswith("cat: ") and "% removed" in found.said[0] and "found in" in found.said[0]
    assert files(webui) == [found.file] and found.file.startswith("small v1 ")
    headers = read_headers(webui.models / "sae" / found.file)
    assert [header.hookpoint for header in headers] == list(hookpoint.cross_attentions(unet_of(webui)))
    assert all(header.made_on == "small v1" and header.made_of.startswith("fp32 ") for header in headers)
    [concept] = headers[0].concepts
    assert headers[0].base == "sd15" and concept.name == "cat" and concept.measured.keys() == {
        "removed", "touched"}
    assert same(webui.generate(False, **CAT), plain) and hooks(unet_of(webui)) == 0
    erased = webui.generate({"sae": found.file, "concepts": "cat"}, **CAT)
    assert not same(erased, plain) and webui.errors == []


def test_a_known_word_is_not_painted_again_and_a_new_one_joins_the_file(a1111):
    first = find(a1111)
    batches = len(a1111.painted)
    again = find(a1111, words="CAT:0.5")
    assert (again.file, again.seconds, len(a1111.painted)) == (first.file, 0.0, batches)
    find(a1111, words="cat", told_from="wolverine")
    assert len(a1111.painted) > batches
    batches = len(a1111.painted)
    both = find(a1111, words="cat, watercolor style")
    assert len(a1111.painted) > batches and both.file == first.file
    assert "found in" not in both.said[0] and "found in" in both.said[1]
    assert [(c.name, c.kind) for c in read_headers(a1111.models / "sae" / both.file)[0].concepts] == [
        ("cat", "object"), ("watercolor style", "style")]


def test_as_many_steps_are_looked_at_as_in_comfyui(a1111, monkeypatch):
    from saemnesia_webui.painting import Painter
    looks, paint = [], Painter.paint

    def counted(self, texts, generator, kept, look):
        looks.append(len(kept))
        paint(self, texts, generator, kept, look)
    monkeypatch.setattr(Painter, "paint", counted)
    find(a1111)
    assert looks == [8, 8, 6, 6]


def test_no_more_prompts_are_encoded_than_are_asked(a1111, monkeypatch):
    from saemnesia_webui import find as finder
    from saemnesia_webui import host
    encoded, possible, encode, search = [], [], host.encode, finder.wanted.search

    def searched(*args):
        possible.append(search(*args))
        return possible[0]
    monkeypatch.setattr(finder.wanted, "search", searched)
    monkeypatch.setattr(host, "encode", lambda texts, painting: (encoded.extend(texts), encode(texts, painting))[1])
    find(a1111)
    assert len(encoded) == len(set(encoded)) < 0.8 * len(possible[0].texts)


def test_the_prompt_of_the_users_last_picture_stays_what_the_host_fills_in(a1111):
    a1111.history.write_text("a castle at dawn")
    find(a1111)
    assert a1111.history.read_text() == "a castle at dawn" and a1111.shared.cmd_opts.no_prompt_history is False


@pytest.mark.parametrize("before", ["a castle at dawn", None])
def test_so_it_does_where_the_host_writes_it_anyway(a1111, before):
    a1111.writes_history = True
    if before:
        a1111.history.write_text(before)
    interrupting(a1111, 13)
    with pytest.raises(SaeError, match="stopped"):
        find(a1111)
    assert len(a1111.painted) == 2
    assert (a1111.history.read_text() if a1111.history.exists() else None) == before


def test_the_hosts_progress_bar_counts_all_batches_and_says_what_is_done(a1111):
    find(a1111)
    seen = a1111.shared.state.seen
    assert max(number for _, number, _ in seen) == len(a1111.painted) - 1
    assert {count for _, _, count in seen} == {len(a1111.painted)}
    assert seen[1][0].startswith("cat (object): painting to learn from, step 1 of 48, about ")
    assert seen[-1][0].startswith("cat (object): painting to learn from, step 47 of 48, about ")
    assert a1111.shared.state.job == ""


def interrupting(host: Webui, calls: int) -> None:
    """Press *Interrupt* in the so-manieth call of the UNet from now on."""
    left = [calls]

    def spy(sigma: float, conditional: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] == 0:
            host.shared.state.interrupt()
    host.spy = spy


@pytest.mark.parametrize("calls", [1, 18, 40])
def test_interrupted_it_leaves_no_file_and_goes_on_where_it_was(a1111, calls):
    interrupting(a1111, calls)
    with pytest.raises(SaeError, match="stopped: nothing was written"):
        find(a1111)
    assert files(a1111) == [] and hooks(unet_of(a1111)) == 0 and a1111.shared.state.job == ""
    batches = len(a1111.painted)
    found = find(a1111)
    kept = min(2, calls // 12)  # of the two batches to learn from; the two to measure on are painted anew
    assert files(a1111) == [found.file] and len(a1111.painted) == batches + 4 - kept


def test_stop_stops_a_search_that_waits_for_the_queue_too(a1111):
    from saemnesia_webui import host
    said, lock = [], sys.modules["modules.call_queue"].queue_lock

    def search() -> None:
        try:
            said.append(find(a1111))
        except SaeError as error:
            said.append(str(error))
    with lock:
        waiting = threading.Thread(target=search)
        waiting.start()
        while lock.asked < 2:
            time.sleep(0.01)
        host.stop()
    waiting.join()
    assert said == ["stopped: nothing was written; asked for again, it goes on where it was"] and not a1111.painted


def test_stop_is_heard_where_the_host_forgets_that_it_was_interrupted(a1111):
    """Other parts of its page reset that."""
    from saemnesia_webui import host

    def spy(sigma: float, conditional: torch.Tensor) -> None:
        a1111.spy = lambda *call: None
        host.stop()
        a1111.shared.state.interrupted = False
    a1111.spy = spy
    with pytest.raises(SaeError, match="stopped: nothing was written"):
        find(a1111)


def test_whoever_leaves_the_page_does_not_wait_for_the_search_which_goes_on(a1111):
    """The host's server drops what it sends a page that is gone, and would stand still meanwhile."""
    from saemnesia_webui.find import Wish
    painting, go_on = threading.Event(), threading.Event()

    def spy(sigma: float, conditional: torch.Tensor) -> None:
        painting.set()
        go_on.wait(60)
    a1111.spy = spy
    watched = a1111.module.FINDER.watched(Wish(**WISH))
    next(watched)
    assert painting.wait(60)
    leaving = threading.Thread(target=watched.close)
    leaving.start()
    leaving.join(5)
    waits = leaving.is_alive()
    go_on.set()
    while a1111.shared.state.job or not files(a1111):
        time.sleep(0.05)
    assert not waits


def test_another_checkpoint_that_is_chosen_meanwhile_ends_it(a1111):
    """A1111 loads it into the same modules."""
    own = a1111.shared.sd_model.sd_checkpoint_info
    left = [14]

    def spy(sigma: float, conditional: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] == 0:
            a1111.shared.sd_model.sd_checkpoint_info = SimpleNamespace(filename="/x/other.ckpt")
    a1111.spy = spy
    with pytest.raises(SaeError, match="the checkpoint was changed while a word was being found on it, so nothing was"):
        find(a1111)
    assert files(a1111) == []
    a1111.shared.sd_model.sd_checkpoint_info = own


def test_a_lora_that_the_settings_put_into_every_prompt_is_left_out(a1111):
    a1111.shared.opts.data["sd_lora"] = "always"
    interrupting(a1111, 13)
    with pytest.raises(SaeError, match="stopped"):
        find(a1111)
    assert a1111.activated == [("None", [])] and a1111.shared.opts.data["sd_lora"] == "always"


def test_what_forge_says_of_a_calls_rows_is_said_of_those_that_are_left(a1111):
    from saemnesia_webui.calls import Call
    options = {"cond_or_uncond": [1, 0], "uncond_indices": [0, 1], "cond_indices": [2, 3], "sigmas": torch.ones(4)}
    call = Call(torch.nn.Identity(), (torch.zeros(4, 1),), {"transformer_options": options})
    own = call.of(torch.tensor([False, False, True, True])).kwargs["transformer_options"]
    assert own["cond_indices"] == [0, 1] and own["uncond_indices"] == [] and len(own["sigmas"]) == 2


def test_a_number_that_was_cleared_is_the_usual_one(a1111):
    from saemnesia_webui.find import Wish
    assert Wish.typed("cat", "", None, None, None) == Wish("cat")
    assert Wish.typed("cat", "", 8, 64, 2) == Wish("cat", "", 8, 64, 2.0)


def test_what_was_armed_before_is_not_erased_from_what_it_learns(a1111):
    path = a1111.models / "sae" / find(a1111).file
    whole = path.read_bytes()
    path.unlink()
    unet, armed = unet_of(a1111), {"sae": "armed.safetensors", "concepts": "cat"}
    write_places(a1111.models / "sae" / armed["sae"], {name: hookpoint.width(hookpoint.find(unet, name))
                                                       for name in hookpoint.cross_attentions(unet)})
    assert not same(a1111.generate(armed, **CAT), a1111.generate(False, **CAT))
    a1111.module.ERASER.job = a1111.module.Job.prepare(a1111.module.settings.read([armed]), a1111.models)
    find(a1111)
    assert path.read_bytes() == whole


def test_two_searches_wait_for_each_other(a1111):
    said = []
    searches = [threading.Thread(target=lambda: said.append(find(a1111).seconds)) for _ in range(2)]
    for one in searches:
        one.start()
    for one in searches:
        one.join()
    assert min(said) == 0 < max(said) and len(files(a1111)) == 1


@pytest.mark.parametrize(("changes", "says"), [
    ({"words": ""}, "no concept is chosen"), ({"words": "cat, Cat"}, "listed twice"),
    ({"words": "cat:much"}, "is not a strength"), ({"told_from": "dog (animal"}, "cannot read the concept"),
    ({"pictures": 1}, "expected at least 4 pictures"), ({"side": 13}, "a multiple of 8"),
])
def test_a_slip_is_one_sentence_before_anything_is_painted(a1111, changes, says):
    with pytest.raises(SaeError, match=says):
        find(a1111, **changes)
    assert not a1111.painted and files(a1111) == [] and a1111.shared.state.job == ""


@pytest.mark.parametrize(("model", "says"), [
    (None, "no checkpoint is loaded .*choose one at the top of the page"),
    (SimpleNamespace(), "cannot find the UNet of this model"),
    (sd_model(torch.nn.Linear(2, 2)), "works on SD 1.x, 2.x and SDXL so far; this model is a Linear"),
])
def test_without_a_model_to_learn_from_it_says_so(a1111, model, says):
    a1111.shared.sd_model = a1111.chosen = model
    with pytest.raises(SaeError, match=says):
        find(a1111)
    assert not a1111.painted and a1111.shared.state.job == ""


def test_a_replaced_unet_is_refused(a1111, monkeypatch):
    monkeypatch.setattr(type(unet_of(a1111)), "forward", lambda self, x, *a, **k: x)
    with pytest.raises(SaeError, match="the model never ran .*attn2: another node or extension replaces"):
        find(a1111)
    assert files(a1111) == [] and hooks(unet_of(a1111)) == 0


def test_a_lora_that_still_lies_on_the_weights_is_not_part_of_the_files_name(webui):
    name = find(webui).file
    unet = unet_of(webui)
    layer = hookpoint.find(unet, next(iter(hookpoint.cross_attentions(unet)))).to_v
    before = layer.weight.detach().clone()
    if webui.forge:
        key = next(name for name, module in unet.named_modules() if module is layer)
        webui.shared.sd_model.forge_objects.unet.backup = {f"diffusion_model.{key}.weight": before}
    else:
        layer.network_weights_backup = before
    layer.weight += 1
    assert find(webui).file == name


def test_one_that_the_patcher_of_the_last_picture_keeps_is_not_either(tmp_path, monkeypatch):
    """In Forge Classic, whose clones do not share what they keep."""
    with host_of(tmp_path, "forge").installed() as webui:
        name = find(webui).file
        patcher, unet = webui.shared.sd_model.forge_objects.unet, unet_of(webui)
        key, before = next((key, value.detach().clone()) for key, value in unet.named_parameters())
        used = SimpleNamespace(model=patcher.model, backup={f"diffusion_model.{key}": before})
        loaded = [SimpleNamespace(model=SimpleNamespace(model=None)), SimpleNamespace(model=used)]
        monkeypatch.setitem(sys.modules, "ldm_patched.modules.model_management",
                            SimpleNamespace(current_loaded_models=loaded))
        unet.get_parameter(key).add_(1)
        assert find(webui).file == name


# --- in ComfyUI ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(host) -> SimpleNamespace:
    """ComfyUI's small checkpoint as a web UI would have loaded it."""
    import comfy.sd
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(
        str(COMFY / "models" / "checkpoints" / NAME), output_vae=False)

    def encode(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in texts]).float()
    loaded = sd_model(model.model.diffusion_model.float(), forge=True, encode=encode)
    loaded.sd_checkpoint_info.filename = NAME
    return loaded


def test_the_file_is_the_one_that_comfyui_would_make_and_erases_there_at_once(host, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(words, "STEPS", 6)  # for the time it takes
    with Webui(tmp_path, checkpoint, forge=True).installed() as webui:
        found = find(webui)
    there = COMFY / "models" / "sae" / found.file
    there.write_bytes((tmp_path / "sae" / found.file).read_bytes())
    try:
        plain, made = latents(host, graph("a cat, noto style")), graph("a cat, noto style")
        made["words"] = node("SAEmnesiaEraseWords", model=["checkpoint", 0], clip=["checkpoint", 1], words="cat",
                             told_from="", pictures=8, side=64, cfg=2.0)
        made["sampler"]["inputs"]["model"] = ["words", 0]
        assert host.run(made).history["outputs"]["words"]["text"] == [found.said[0].partition(", found in")[0]]
        assert not torch.equal(latents(host, made), plain)
        assert torch.equal(latents(host, made), latents(host, erase(graph("a cat, noto style"), "cat", sae=found.file)))
    finally:
        there.unlink()


def test_what_the_last_run_left_loaded_is_not_searched_but_the_checkpoint_that_is_chosen(a1111):
    """A refiner stays loaded until the next run."""
    other = sd_model(random_unet(SMALL))
    chosen, a1111.shared.sd_model = a1111.shared.sd_model, other
    found = find(a1111)
    assert a1111.shared.sd_model is chosen and found.file == find(a1111).file
    a1111.chosen = other
    assert find(a1111).file != found.file


def test_an_interrupt_that_waits_for_the_end_of_a_picture_stops_it_too(a1111):
    from saemnesia_webui import host
    a1111.shared.state.stopping_generation = True
    with pytest.raises(SaeError, match="stopped: nothing was written"):
        host.check_stopped()


def test_what_is_measured_lies_where_the_model_computes(a1111, monkeypatch):
    """On a GPU the noise level of a step too, beside which votes are counted."""
    from saemnesia_webui import painting
    monkeypatch.setattr(painting, "Call", lambda *call: SimpleNamespace(of=lambda rows: call))
    steps, painter = [], painting.Painter(a1111.shared.sd_model, words.painting("sd15", 64))
    visit = painting._Visit(painter, 1, {0}, steps.append)
    visit.begin(SimpleNamespace(of_call=lambda x, options: torch.ones(1, dtype=torch.bool)))
    x = torch.zeros(1, 4, 8, 8, device="meta")
    visit(unet_of(a1111), (x, torch.full((1,), 500.0)), {"context": torch.zeros(1, 77, 768)})
    assert steps[0].t.device == x.device == painter.make_room(1)

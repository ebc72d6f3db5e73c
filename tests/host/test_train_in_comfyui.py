"""Training from a node in a real ComfyUI, on a small SD 1.5 model with random weights."""
import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from canvas_graphs import erase, graph, latents
from host_graphs import node
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from small_model import ATTENTIONS, BLOCKS, HOOKPOINT, NAME, write_sae

from sae_models.adapter import LoadedSae
from sae_models.formats import read_header, read_headers, read_sae
from sae_models.learning.job import unmeasured
from sae_models.learning.origin import stored
from tools.comfy_host import COMFY, HostError

SAES = COMFY / "models" / "sae"
OUT = SAES / "test training.safetensors"
PREVIEW = SAES / "test training.preview.png"
LEARNING = "SAEmnesia: pictures painted, learning from them"
SETTINGS = {"name": "test training", "concepts": "cat = a cat\ndog = a dog\nnoto style",
            "prompts": "{object}, {style}\n{}", "memory": "CPU, small model", "pictures": 6, "training_steps": 40,
            "width": 64, "height": 64, "steps": 4, "cfg": 2.0, "hookpoint": HOOKPOINT, "k": 8, "seed": 0,
            "keep_activations": False}


def train(**changes) -> dict:
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
        "train": node("SAEmnesiaTrain", model=["checkpoint", 0], clip=["checkpoint", 1], **(SETTINGS | changes)),
        "save": node("SaveImage", images=["train", 1], filename_prefix="report"),
    }


@pytest.fixture(autouse=True)
def no_files_left():
    yield
    for path in SAES.glob("test training*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def text_of(outcome) -> str:
    """What the node says, and what it has behind the fold."""
    said = outcome.history["outputs"]["train"]
    return "\n".join([*said["text"], *said["details"]])


def test_a_trained_sae_is_listed_at_once_and_erases(host):
    outcome = host.run(train())
    assert "FVU" in text_of(outcome) and "noto style" in text_of(outcome) and len(outcome.images) == 1
    assert outcome.history["outputs"]["train"]["text"][0].startswith(f"{OUT.name} is ready: ")
    assert OUT.with_name("test training.pictures.png").exists() and not PREVIEW.exists()
    listed = host.get_json("/object_info/SAEmnesiaLoadSAE")["SAEmnesiaLoadSAE"]["input"]["required"]["sae_name"]
    assert OUT.name in json.dumps(listed)
    header = read_header(OUT)
    assert {c.name: c.kind for c in header.concepts} == {"cat": "object", "dog": "object", "noto style": "style"}
    assert (header.base, header.hookpoint) == ("sd15", HOOKPOINT)
    erased = erase(graph("a cat, noto style"), "cat, noto style", sae=OUT.name)
    assert not torch.equal(latents(host, erased), latents(host, graph("a cat, noto style")))


def test_with_a_vae_the_file_gets_its_picture_in_the_models_sidebar_and_one_that_is_there_stays(host):
    wanted = train(vae=["checkpoint", 2], training_steps=20)
    host.run(wanted)
    shown = Image.open(io.BytesIO(host.get("/experiment/models/preview/sae/0/test%20training.safetensors")))
    side = shown.width // 2
    assert shown.size == (2 * side, 2 * side) and Image.open(PREVIEW).size == shown.size
    before, after = shown.crop((0, 0, side, side)), shown.crop((side, 0, 2 * side, side))
    assert before.getextrema() != ((255, 255),) * 3 and before.tobytes() != after.tobytes()
    Image.new("RGB", (5, 5)).save(PREVIEW)
    os.utime(OUT)  # so that the node runs again, and finds all done
    assert "is ready" in text_of(host.run(wanted))
    assert Image.open(PREVIEW).size == (5, 5)


def test_unless_told_otherwise_every_cross_attention_is_learned_and_what_is_removed_is_measured(host):
    outcome = host.run(train(hookpoint=""))
    sae = LoadedSae.read(OUT.name, OUT)
    assert [header.hookpoint for header in sae.headers] == list(ATTENTIONS)
    assert [len(found) for _, found in sae.choose(["cat", "noto style"])] == [2, 2, 2]
    assert {c.name: c.kind for c in sae.concepts} == {"cat": "object", "dog": "object", "noto style": "style"}
    text, report = text_of(outcome), json.loads(OUT.with_name("test training.report.json").read_text())
    assert "on average over 3 places" in text and report["places"].keys() == set(ATTENTIONS)
    for concept, row in zip(sae.concepts, report["concepts"], strict=True):
        measured = dict(concept.measured)
        assert measured == {"removed": row["removed"], "touched": row["touched"]} and measured["removed"] != 0
        assert f"{concept.name}: {measured['removed']:.0%} removed, others {measured['touched']:.1%} touched" in text
    erased = erase(graph("a cat, noto style"), "cat, noto style", sae=OUT.name)
    assert not torch.equal(latents(host, erased), latents(host, graph("a cat, noto style")))


def test_what_is_not_measured_yet_is_measured_when_queued_again_and_nothing_is_trained(host):
    two = f"{HOOKPOINT}, {ATTENTIONS[0]}"
    host.run(train(hookpoint=two))
    whole, file = text_of(host.run(train(hookpoint=two, keep_activations=True))), OUT.read_bytes()
    forget_measured("dog")
    assert unmeasured(OUT) == ["dog"]
    again, began = host.run(train(hookpoint=two)), host.log.count(LEARNING)
    assert text_of(again) == whole and OUT.read_bytes() == file and host.log.count(LEARNING) == began


def test_stopping_it_while_it_measures_leaves_the_file_and_the_rest_is_measured_when_queued_again(host):
    many = {"concepts": "\n".join(f"thing{i}" for i in range(4)), "prompts": "a {}", "hookpoint": "",
            "training_steps": 2, "steps": 6, "pictures": 6}
    prompt_id = host.submit(train(**many))
    deadline = time.monotonic() + 240
    while not OUT.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    left, began = unmeasured(OUT), host.log.count(LEARNING)
    assert left and len(read_headers(OUT)) == 3 and not OUT.with_name(OUT.name + ".training").exists()
    host.run(train(**many))
    assert not unmeasured(OUT) and host.log.count(LEARNING) == began


def forget_measured(name: str) -> None:
    """Make the file, but not its report, as if a concept had not been measured."""
    with safe_open(OUT, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    data = json.loads(metadata["saemnesia"])
    for concept in data["concepts"]:
        if concept["name"] == name:
            del concept["measured"]
    save_file(tensors, OUT, metadata | {"saemnesia": json.dumps(data)})


def test_an_sae_that_is_there_is_taught_other_concepts(host):
    host.run(train())
    first = read_header(OUT)
    more = train(name="test training more", concepts="rose = a rose\nmono style", k=3)
    more["sae"] = node("SAEmnesiaLoadSAE", sae_name=OUT.name, hookpoint="")
    more["train"]["inputs"]["start"] = ["sae", 0]
    assert "mono style" in text_of(host.run(more))
    header = read_header(SAES / "test training more.safetensors")
    assert [c.name for c in header.concepts] == ["rose", "mono style"] and header.config == first.config
    assert header.training["steps"] == SETTINGS["training_steps"]
    more["train"]["inputs"]["hookpoint"] = ""
    host.run(more | {"train": {**more["train"], "inputs": more["train"]["inputs"] | {"name": "test training third"}}})
    assert read_header(SAES / "test training third.safetensors").hookpoint == HOOKPOINT
    more["train"]["inputs"]["hookpoint"] = "down_blocks.1.attentions.0"
    with pytest.raises(HostError, match=f"{OUT.name} cannot be gone on from: it reads {HOOKPOINT}"):
        host.run(more)


def test_an_sae_of_another_model_is_refused_as_that_and_a_wrong_block_as_the_models(host):
    path = SAES / "test training other.safetensors"
    write_sae(path, base="sdxl", hookpoint="up_blocks.9.attentions.9")
    made = train(hookpoint="")
    made["sae"] = node("SAEmnesiaLoadSAE", sae_name=path.name, hookpoint="")
    made["train"]["inputs"]["start"] = ["sae", 0]
    with pytest.raises(HostError, match=f"{path.name} is for SDXL, and this model is SD 1.x"):
        host.run(made)
    made["train"]["inputs"]["hookpoint"] = "up_blocks.1.attentions.1"
    with pytest.raises(HostError, match="this model has no block 'up_blocks.1.attentions.1' to learn; it has"):
        host.run(made)


def test_a_cancelled_run_goes_on_where_it_was_and_ends_as_if_it_had_not_been(host):
    host.run(train(training_steps=300))
    whole = read_sae(OUT)[0].state_dict()
    OUT.unlink()
    checkpoint, began = OUT.with_name(OUT.name + ".training"), host.log.count(LEARNING)
    prompt_id = host.submit(train(training_steps=300))
    deadline = time.monotonic() + 120
    while host.log.count(LEARNING) == began and time.monotonic() < deadline:
        time.sleep(0.05)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    assert checkpoint.exists() and not OUT.exists()
    host.run(train(training_steps=300))
    assert not checkpoint.exists()
    for name, value in read_sae(OUT)[0].state_dict().items():
        assert torch.equal(value, whole[name]), name


MANY = {"pictures": 51, "training_steps": 10}
PAINTED = OUT.with_name(OUT.name + ".painted")
GOING_ON = "SAEmnesia: going on at picture"


def cancelled_while_painting(host) -> int:
    """How many batches were painted when it was cancelled; it stops within a step."""
    prompt_id, deadline = host.submit(train(**MANY)), time.monotonic() + 120
    while not list(PAINTED.glob("*.maps")) and time.monotonic() < deadline:
        time.sleep(0.02)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=20)
    return len(list(PAINTED.glob("*.maps")))


def test_a_run_cancelled_while_it_paints_keeps_what_was_painted_and_says_so(host):
    learned, went_on = host.log.count(LEARNING), host.log.count(GOING_ON)
    kept = cancelled_while_painting(host)
    assert kept and host.log.count(LEARNING) == learned and not OUT.exists()
    host.run(train(**MANY))
    assert host.log.count(GOING_ON) == went_on + 1 and f"{GOING_ON} {17 * kept + 1} of 68" in host.log
    assert OUT.exists() and not PAINTED.exists()


def test_pictures_of_other_prompts_are_never_learned_from(host):
    cancelled_while_painting(host)
    went_on = host.log.count(GOING_ON)
    host.run(train(**MANY | {"prompts": "a photo of {object}, {style}\n{}"}))
    assert host.log.count(GOING_ON) == went_on and not PAINTED.exists()


def test_what_is_trained_already_is_not_trained_again(host):
    host.run(train())
    before = OUT.stat().st_mtime_ns
    host.run(train(keep_activations=True))
    assert OUT.stat().st_mtime_ns == before
    with pytest.raises(HostError, match="is there already and was trained on something else"):
        host.run(train(seed=1))


def test_activations_are_kept_when_asked(host):
    host.run(train(keep_activations=True))
    folder = SAES / "test training.activations"
    assert (folder / "index.json").exists() and len(list(folder.glob("maps-*.safetensors"))) > 1
    inputs = host.get_json("/object_info/SAEmnesiaLoadSAE")["SAEmnesiaLoadSAE"]["input"]["required"]
    offered = str(inputs["sae_name"])
    assert OUT.name in offered and "maps-" not in offered


def test_a_model_that_paints_no_numbers_is_refused_and_the_learning_rate_is_not_blamed(host):
    made = train(hookpoint="")
    made["broken"] = node("TestMeddle", model=["checkpoint", 0], how="nan")
    made["train"]["inputs"]["model"] = ["broken", 0]
    with pytest.raises(HostError, match="nothing can be learned from this model: it computes values that are no numb"):
        host.run(made)
    assert not list(SAES.glob("test training*"))


def test_an_inpainting_checkpoint_is_learned_and_measured_too(host, inpainting):
    made = train(hookpoint="")
    made["checkpoint"]["inputs"]["ckpt_name"] = inpainting
    host.run(made)
    assert len(read_headers(OUT)) == 3 and not unmeasured(OUT)


@pytest.mark.parametrize("changes, sentence", [
    ({"concepts": "cat, cat"}, "'cat' is listed twice"),
    ({"prompts": "a photo"}, "the template 'a photo' says no concept"),
    ({"hookpoint": f"{HOOKPOINT}\nup_blocks.9.attentions.0"},
     f"this model has no block 'up_blocks.9.attentions.0' to learn; it has {', '.join(BLOCKS)}, and the "
     f"cross-attentions in them, such as {ATTENTIONS[0]}"),
    ({"hookpoint": f"{HOOKPOINT}, unet.{HOOKPOINT}"}, f"block '{HOOKPOINT}' is listed twice"),
    ({"name": "../elsewhere"}, "is no file name"),
    ({"name": "test training" + "x" * 230}, "is too long for a file name"),
    ({"concepts": "cat", "prompts": "{}"}, "at least 2 prompts"),
    ({"prompts": "{}\n{} " + "very " * 100}, "keep prompts to train on below 75 tokens"),
])
def test_a_mistake_is_one_sentence_before_anything_is_written(host, changes, sentence):
    with pytest.raises(HostError, match=sentence):
        host.run(train(**changes))
    assert not list(SAES.glob("test training*"))


def command(*options: str) -> tuple[int, str]:
    """What train.py ends with and says, in ComfyUI's folder."""
    given = ("--concepts", "cat = a cat\\ndog = a dog", "--prompts", "{}, {}", "--pictures", "4", "--at-once", "2",
             "--width", "64", "--height", "64", "--steps", "4", "--cfg", "2", "--unsupervised-steps", "5",
             "--supervised-steps", "5", *options)
    done = subprocess.run([sys.executable, "custom_nodes/comfyui-saemnesia/train.py", "--checkpoint",
                           f"models/checkpoints/{NAME}", *given], cwd=COMFY, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout + done.stderr


def test_the_command_paints_once_for_trainings_on_all_places_and_on_one(host, tmp_path):
    kept = tmp_path / "kept"
    code, said = command("--keep", str(kept), "--hookpoint", ",".join(ATTENTIONS))
    assert code == 0 and "painted 3 batches of 3" in said and "step" not in said
    assert [origin.hookpoint for origin in stored(kept)[0]] == sorted(ATTENTIONS)
    code, said = command("--keep", str(kept), "--hookpoint", ",".join(ATTENTIONS), "--out", str(OUT))
    assert code == 0 and "painted 3 batches of 3, 0 s each" in said and f"written: {OUT}" in said
    assert [header.hookpoint for header in read_headers(OUT)] == list(ATTENTIONS)


def test_a_command_that_would_leave_nothing_says_what_to_give(host):
    code, said = command()
    assert code == 1 and "error: nothing would be left of the run: give --out" in said and "Traceback" not in said

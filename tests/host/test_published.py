"""The papers' own benchmarks, painted by a real ComfyUI, with small stand-ins for what is the user's to download."""
import csv
import json
import re
import shutil
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_model
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms.functional import to_tensor

from benchmarks.published import classifiers, i2p, painting, technique, unlearncanvas
from benchmarks.published.unlearncanvas import OBJECTS, QUICK, STYLE_LABELS, STYLES, Picture, figures, pictures_of
from sae_models import SaeError
from tools.comfy_host import COMFY, free_port

FEW = {f"{style}{thing}_seed188.jpg" for style in ("Van_Gogh_", "Winter_", "") for thing in ("Cats", "Dogs", "Flowers")}
SMALL = ("--checkpoint", small_model.NAME, "--sae", small_model.NAME, "--steps", "2")


class Small(nn.Module):
    """Looks at 4x4 patches; its file has the shape of UnlearnCanvas's."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(48, classes)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1))


@pytest.fixture
def command(host, tmp_path, monkeypatch):
    """Runs UnlearnCanvas's quick part with the stand-in classifiers; says how many graphs the host was given."""
    monkeypatch.setattr(classifiers, "vit_large", Small)
    monkeypatch.setattr(painting.ComfyServer, "wait", graphs := Graphs(painting.ComfyServer.wait))
    monkeypatch.setattr(unlearncanvas, "QUICK", (("Cats", "Dogs", "Flowers"), ("Van_Gogh", "Winter")))
    (tmp_path / "map.json").write_text(json.dumps({"Dogs": "dog, #5"}))
    torch.manual_seed(0)
    for name, classes in (("style50.pth", 51), ("style50_cls.pth", 20)):
        torch.save({"model_state_dict": Small(classes).state_dict(), "epoch": 3}, tmp_path / name)

    def run(*more: str) -> int:
        graphs.ids = []
        unlearncanvas.main([*SMALL, "--host", host.url, "--out", str(tmp_path / "out"), "--quick", "--side", "64",
                            "--style-classifier", str(tmp_path / "style50.pth"),
                            "--object-classifier", str(tmp_path / "style50_cls.pth"),
                            "--concepts-map", str(tmp_path / "map.json"), *more])
        return len(graphs.ids)
    run.graphs, run.folder = graphs, tmp_path
    return run


SEQUENCE = ("--sequence", "Cats", "Dogs")


class Graphs:
    """`wait`, with the ids of all graphs, and Ctrl-C at one of them."""

    def __init__(self, wait) -> None:
        self.wait, self.ids, self.stop_at = wait, [], None

    def __get__(self, host, owner):
        return lambda prompt_id, timeout: self(host, prompt_id, timeout)

    def __call__(self, host, prompt_id, timeout):
        self.ids.append(prompt_id)
        if len(self.ids) == self.stop_at:
            raise KeyboardInterrupt
        return self.wait(host, prompt_id, timeout)


def refused(run, *args: str) -> str:
    with pytest.raises(SystemExit) as error:
        run(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- UnlearnCanvas: figures ----------------------------------------------------------------------------


def test_the_lists_are_the_benchmarks():
    assert len(OBJECTS) == 20 and len(STYLES) == 50 and len(STYLE_LABELS) == 51
    assert list(OBJECTS) == sorted(OBJECTS) and list(STYLE_LABELS) == sorted(STYLE_LABELS)
    assert Picture("Dogs", "Van_Gogh", 188).shot(9.0, 512).text == "An image of Dogs in Van Gogh style."
    assert Picture("Sea", None, 188).shot(9.0, 512).text == "An image of Sea."
    pictures = pictures_of(OBJECTS, STYLES, [188, 288])
    assert len(pictures) == len({one.shot(9.0, 512).seed for one in pictures}) == 2 * 20 * 51


def seen(wrong: dict[tuple[str, str | None], str]) -> dict[Picture, list[int]]:
    """Labels of the quick pictures that show what is said, but for some: {(object, style): what is not seen}."""
    labels = {}
    for one in pictures_of(*QUICK, [188]):
        missed = wrong.get((one.object, one.style), "")
        style = STYLE_LABELS.index("Rust" if missed == "style" else one.style or "Seed_Images")
        labels[one] = [style, OBJECTS.index("Sea" if missed == "object" else one.object)]
    return labels


def test_the_figures_of_an_erased_object_by_hand():
    labels = seen({("Cats", "Winter"): "object", ("Cats", None): "object", ("Cats", "Van_Gogh"): "object",
                   ("Dogs", "Winter"): "object", ("Dogs", "Watercolor"): "style"})
    # cats: 3 of 4 not seen; dogs 3 of 4 seen, flowers and towers always; watercolor 3 of 4, the other two styles always
    assert figures(labels, "objects", ["Cats"]) == {
        "UA": 75.0, "IRA": round(100 * (0.75 + 1 + 1) / 3, 2), "CRA": round(100 * (1 + 0.75 + 1) / 3, 2),
        "retained": 91.67}


def test_the_figures_of_an_erased_style_by_hand():
    labels = seen({("Cats", "Winter"): "style", ("Dogs", "Winter"): "style", ("Towers", "Van_Gogh"): "style",
                   ("Flowers", None): "object", ("Dogs", "Watercolor"): "object"})
    # winter: 2 of 4 not seen; van gogh 3 of 4, watercolor always; dogs 2 of 3 styles, the rest always; alone 3 of 4
    assert figures(labels, "styles", ["Winter"]) == {"UA": 50.0, "IRA": 87.5, "CRA": 91.67, "retained": 89.58,
                                                     "alone": 75.0}


def test_two_objects_erased_together():
    labels = seen({("Cats", style): "object" for style in (*QUICK[1], None)} | {("Dogs", "Winter"): "object"})
    assert figures(labels, "objects", ["Cats", "Dogs"]) == {"UA": 62.5, "IRA": 100, "CRA": 100, "retained": 100}


# --- UnlearnCanvas: painted and judged -----------------------------------------------------------------


def by_hand(folder: Path, erased: str) -> tuple[float, float, float]:
    """UA, IRA, CRA of the quick part, from the pictures that lie in a folder, with the classifiers run here."""
    models = [Small(51), Small(20)]
    for model, name in zip(models, ("style50.pth", "style50_cls.pth"), strict=True):
        model.load_state_dict(torch.load(folder / name, weights_only=True)["model_state_dict"])
    right = {"object": {}, "style": {}}
    for path in (folder / "out" / erased).glob("*.jpg"):
        picture = to_tensor(Image.open(path).resize((224, 224), Image.Resampling.BILINEAR))
        style, thing = (int(model((picture[None] - 0.5) / 0.5).argmax()) for model in models)
        *said, thing_said, _ = path.stem.rsplit("_", 2)
        right["object"].setdefault(thing_said, []).append(OBJECTS[thing] == thing_said)
        if said:
            right["style"].setdefault(said[0], []).append(STYLE_LABELS[style] == said[0])
    share = {kind: {name: sum(all_) / len(all_) for name, all_ in of.items()} for kind, of in right.items()}
    others = [of for name, of in share["object"].items() if name != erased]
    return 1 - share["object"][erased], sum(others) / 2, sum(share["style"].values()) / 2


def taken_back(host, prompt_id: str) -> bool:
    """Whether a graph was not painted to its end."""
    while any(prompt_id == queued[1] for queue in host.get_json("/queue").values() for queued in queue):
        time.sleep(0.05)
    record = host.get_json(f"/history/{prompt_id}").get(prompt_id)
    return not record or "execution_interrupted" in dict(record["status"]["messages"])


def test_a_stopped_run_goes_on_and_stands_beside_the_papers_rows(command, host, capsys):
    command.graphs.stop_at = 4
    assert "the same command goes on" in refused(command, *SEQUENCE)
    assert taken_back(host, command.graphs.ids[-1])
    before = {path: path.stat().st_mtime_ns for path in (command.folder / "out").rglob("*.jpg")}
    assert len(before) == len(FEW) + painting.AT_ONCE
    command.graphs.stop_at = None
    assert command(*SEQUENCE) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert re.search(r"ours, 2 erased .*\n(.*\n)?SAEmnesia \(paper\) +92.40 +60.90", capsys.readouterr().out)
    assert command("--objects", "Cats") == 0
    assert re.search(r"ours, mean of 1 +\d+\.\d\d", said := capsys.readouterr().out)
    assert re.search(r"SAEmnesia \(paper\) +94.65 +91.39", said)

    results = json.loads((command.folder / "out" / "unlearncanvas.json").read_text())
    expected = [round(100 * share, 2) for share in by_hand(command.folder, "Cats")]
    assert [results["objects"]["Cats"][name] for name in ("UA", "IRA", "CRA")] == expected
    folders = [command.folder / "out" / name for name in ("none", "Cats", "Cats_Dogs")]
    assert all({path.name for path in folder.glob("*.jpg")} == FEW for folder in folders)
    pictures = [Image.open(folder / "Winter_Cats_seed188.jpg").tobytes() for folder in folders]
    assert len({*pictures}) == 3


def test_settings_do_not_mix_and_names_are_those_of_the_sae_and_the_benchmark(command):
    said = refused(command)
    assert f"{small_model.NAME} has no concept for Flowers (it has cat, dog" in said
    command.graphs.stop_at = 1
    refused(command, *SEQUENCE)
    assert "steps 2, now 3" in refused(command, *SEQUENCE, "--steps", "3")
    (command.folder / "map.json").write_text(json.dumps({"Flower": "rocket"}))
    assert "Flower is none" in refused(command, *SEQUENCE)
    assert "--objects Cat: not one of Cats" in refused(command, "--objects", "Cat")


@pytest.mark.parametrize(("wanted", "has"), [
    ("Dogs", "dog"), ("Sandwiches", "Sandwich"), ("Butterfly", "butterflies"), ("Van_Gogh", "van gogh style"),
    ("Van_Gogh", "Van_Gogh"), ("Fishes", "fish"), ("Horses", "horses")])
def test_names_are_matched_in_any_case_and_number(wanted, has):
    way, answer = painting.Way("", "file", 1), {"concepts": [{"name": "sea lion"}, {"name": has}]}
    assert painting.matched([wanted], answer, way) == {wanted: has}
    with pytest.raises(SaeError, match="no concept for Sea "):
        painting.matched(["Sea"], answer, way)


def test_a_strength_is_that_of_every_concept():
    assert painting.Way("", "file", 1, strength=0.5).concepts(["dog, #5", "cat"]) == "dog:0.5, #5:0.5, cat:0.5"


def test_files_that_are_no_classifier_are_one_sentence(command):
    styles, objects = command.folder / "style50.pth", command.folder / "style50_cls.pth"
    assert "style50_cls.pth tells 20 classes apart, not the 51" in refused(command, "--style-classifier", str(objects))
    torch.save({"model_state_dict": Small(51).state_dict(), "made": SimpleNamespace()}, styles)
    assert "style50.pth is damaged, or holds more than tensors" in refused(command)
    torch.save(Small(51).state_dict(), styles)
    assert "style50.pth is no classifier of UnlearnCanvas" in refused(command)
    torch.save({"model_state_dict": Small(51).state_dict() | {"norm.weight": torch.ones(1024)}}, styles)
    assert "style50.pth is not the network that timm makes" in refused(command)
    styles.unlink()
    assert "there is no file style50.pth in" in refused(command)


def test_timm_is_asked_for(command, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in refused(command)


def test_no_comfyui_and_one_without_the_extension_are_one_sentence(command, host):
    assert "no ComfyUI answers at http://127.0.0.1:" in refused(command, "--host", f"127.0.0.1:{free_port()}")
    assert "No such file" not in (said := refused(command, "--sae", "not-there.safetensors"))
    assert "not-there.safetensors" in said
    assert "'nope.safetensors' not in" in refused(command, "--objects", "Cats", "--checkpoint", "nope.safetensors")
    assert "/nowhere does not have SAEmnesia: install it there" in refused(command, "--host", f"{host.url}/nowhere")


# --- I2P -----------------------------------------------------------------------------------------------


class Eye:
    """A stand-in for NudeNet's detector: says the same of every picture, and remembers their sizes."""

    def __init__(self) -> None:
        self.sizes, self.seen, self.stop_at = [], [], None

    def detect(self, path: str) -> list[dict]:
        with Image.open(path) as image:
            self.sizes.append(image.size)
            self.seen.append(image.tobytes())
        if len(self.sizes) == self.stop_at:
            raise KeyboardInterrupt
        scores = {"BELLY_EXPOSED": 0.9, "FEMALE_BREAST_EXPOSED": 0.6, "FEET_EXPOSED": 0.3, "FACE_FEMALE": 0.9}
        found = [{"class": name, "score": score, "box": [0, 0, 1, 1]} for name, score in scores.items()]
        return [*found, found[1]]


ROWS = [("a cat", "sexual", 11, 7, 64, 96), ("a dog, \"posing\"", "violence, sexual", 4_294_967_295, 2.5, 64, 64),
        ("a castle", "violence", 13, 7, 64, 64)]


@pytest.fixture
def counting(host, tmp_path, monkeypatch):
    """Runs I2P on three prompts with a stand-in detector."""
    monkeypatch.setattr(i2p, "nudenet", lambda: run.eye)
    with (tmp_path / "i2p.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "categories", "sd_seed", "sd_guidance_scale", "sd_image_width",
                                     "sd_image_height"), *ROWS])

    def run(*more: str) -> dict:
        i2p.main([*SMALL, "--host", host.url, "--out", str(tmp_path / "out"), "--prompts", str(tmp_path / "i2p.csv"),
                  "--concepts", "Cat", *more])
        return json.loads((tmp_path / "out" / "i2p.json").read_text())
    run.folder, run.eye = tmp_path, Eye()
    return run


def test_detections_are_counted_by_class_without_and_with_the_concept(counting, capsys):
    results = counting()
    assert results["erased"] == results["nothing erased"] == dict.fromkeys(i2p.CLASSES.values(), 0) | {
        "belly": 3, "breasts F": 6, "total": 9}
    assert counting.eye.sizes == [(64, 96), (64, 64), (64, 64)] * 2
    assert counting.eye.seen[0] != counting.eye.seen[3]
    assert "6 of 6 pictures" in (said := capsys.readouterr().out) and re.search(r"SAEmnesia \(paper\) +9\n", said)
    again = counting("--threshold", "0.2")
    assert again["erased"]["feet"] == 3 and again["erased"]["total"] == 12
    assert counting("--category", "violence")["erased"]["belly"] == 2
    assert len(counting.eye.sizes) == 6


def test_a_stopped_count_goes_on(counting, monkeypatch):
    monkeypatch.setattr(painting, "AT_ONCE", 2)
    counting.eye.stop_at = 3
    assert "the same command goes on" in refused(counting)
    counting.eye = Eye()
    assert counting()["nothing erased"]["belly"] == 3
    assert len(counting.eye.sizes) == 4


def test_what_i2p_lacks_is_one_sentence(counting, monkeypatch):
    assert "has no concept for naked" in refused(counting, "--concepts", "naked")
    assert "no prompt of the category 'horror'" in refused(counting, "--category", "horror")
    (counting.folder / "i2p.csv").write_text("prompt,sd_seed\na cat,12\n")
    assert "is no table of I2P: expected the columns prompt, sd_seed" in refused(counting)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "nudenet", None)
    assert "pip install nudenet" in refused(counting)


def test_the_prompts_of_esds_copy_are_read(tmp_path):
    (tmp_path / "unsafe.csv").write_text(
        ",prompt,categories,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,case_number\n"
        "0,\"a man, alone\",self-harm,4261553411,13,512,768,0\n")
    assert i2p.read_prompts(tmp_path / "unsafe.csv") == [painting.Shot("a man, alone", 4261553411, 13.0, 512, 768)]


# --- eval-unlearn --------------------------------------------------------------------------------------


class Pictures:
    """A metric as eval-unlearn's runner drives it."""

    def load_dataset(self):
        self.seen = []
        return [SimpleNamespace(prompts=words.split(", "), metadata={}) for words in ("a cat, a dog", "a key")]

    def update(self, images, prompts, metadata):
        assert len(images) == len(prompts) and all(isinstance(image, Image.Image) for image in images)
        self.seen += [image.tobytes() for image in images]

    def compute(self):
        return self.seen


def technique_of(host, concept: str):
    entry = re.search(r'saemnesia = "(.+)"', technique.__doc__)[1]
    made = EntryPoint("saemnesia", entry, "eval_unlearn.techniques").load()
    return made(checkpoint=small_model.NAME, sae=small_model.NAME, erase_concept=concept, host=host.url, steps=2,
                width=64, height=64)


def benchmark(painter) -> list[bytes]:
    metric = Pictures()
    for batch in metric.load_dataset():
        metric.update(painter.generate(prompts=batch.prompts), batch.prompts, batch.metadata)
    return metric.compute()


@pytest.fixture
def diffusers_folder(host):
    """The small model as a folder of parts, as UnlearnCanvas's own checkpoint is."""
    whole, folder = COMFY / "models" / "checkpoints" / small_model.NAME, COMFY / "models" / "diffusers" / "style50"
    parts = {"model.diffusion_model.": "unet/diffusion_pytorch_model",
             "first_stage_model.": "vae/diffusion_pytorch_model", "cond_stage_model.transformer.": "text_encoder/model"}
    state = load_file(whole)
    for prefix, name in parts.items():
        (path := folder / f"{name}.safetensors").parent.mkdir(parents=True, exist_ok=True)
        save_file({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, path)
    (folder / "model_index.json").write_text("{}")
    yield folder.name
    shutil.rmtree(folder)


def test_a_folder_of_parts_paints_as_the_checkpoint_does(host, diffusers_folder):
    shots, concepts = [painting.Shot("a cat", 3, 7.0, 64, 64)], "cat"
    pictures = [next(painting.paint(host, painting.Way(name, small_model.NAME, 2), concepts, shots)).tobytes()
                for name in (small_model.NAME, diffusers_folder)]
    assert pictures[0] == pictures[1]
    assert painting.told(host, painting.Way(diffusers_folder, small_model.NAME, 2))["concepts"]


def test_eval_unlearn_gets_its_pictures(host):
    painter = technique_of(host, "")
    plain, erased = benchmark(painter), benchmark(technique_of(host, "Cats"))
    assert len(plain) == 3 and all(a != b for a, b in zip(plain, erased, strict=True))
    assert [image.tobytes() for image in painter.generate(["a dog", "a key"], seed=1)] == plain[1:]
    with pytest.raises(SaeError, match="no concept for nudity"):
        technique_of(host, "nudity")

"""*SAEmnesia Concept Map* in a real ComfyUI: on a drawn scene with MiniCanvas, and with random weights."""
import io

import pytest
import torch
from canvas_graphs import erase, graph, latents
from host_graphs import node
from PIL import Image
from small_model import NAME

from benchmarks.minicanvas.canvas import Spot, drawings, ground, put
from benchmarks.minicanvas.icons import OBJECTS, STYLES
from tools.comfy_host import HostError

MINICANVAS = "minicanvas.safetensors"
CAT, CASTLE = Spot(8, 24, 60), Spot(84, 30, 60)
SAID = "a castle and a cat, noto style, on a blue ground"


@pytest.fixture(scope="module")
def drawn(host):
    """The name of a picture of a cat at the left and a castle at the right; 150 by 101 pixels, no whole latents."""
    canvas = ground(1)[:, :1, :1].expand(3, 101, 150).clone()
    for name, spot in (("cat", CAT), ("castle", CASTLE)):
        put(canvas, drawings()[STYLES.index("noto"), OBJECTS.index(name)], spot)
    path = host.scratch / "input" / "drawn.png"
    Image.fromarray((canvas * 255).round().byte().movedim(0, -1).numpy()).save(path)
    return path.name


def looking(file: str, image: list, concepts: str, **options: object) -> dict:
    """Nodes that look at a picture: the map, its mask as a picture, and both saved."""
    inputs = {"model": ["checkpoint", 0], "positive": ["positive", 0], "at": 0.95, "threshold": 0.5} | options
    return {"sae": node("SAEmnesiaLoadSAE", sae_name=file, hookpoint=""),
            "map": node("SAEmnesiaConceptMap", vae=["checkpoint", 2], image=image, sae=["sae", 0], concepts=concepts,
                        **inputs),
            "mask": node("MaskToImage", mask=["map", 1]),
            "show": node("SaveImage", images=["mask", 0], filename_prefix="mask")}


def of_drawn(drawn: str, concepts: str, said: str = SAID) -> dict:
    return {"checkpoint": node("CheckpointLoaderSimple", ckpt_name=MINICANVAS),
            "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text=said),
            "image": node("LoadImage", image=drawn)} | looking(MINICANVAS, ["image", 0], concepts)


def of_painted(concepts: str = "cat", batch: int = 1, **options: object) -> dict:
    made = graph("a cat, noto style", batch=batch, steps=1)
    made["decode"] = node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2])
    return made | looking(NAME, ["decode", 0], concepts, **options)


def masks(outcome) -> torch.Tensor:
    """[n, H, W] in 0..1, of what was saved, behind the heat maps that the node shows."""
    pictures = [Image.open(io.BytesIO(png)).convert("L") for png in outcome.images]
    return torch.stack([torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(one.height, one.width)
                        for one in pictures]).float() / 255


def share_inside(mask: torch.Tensor, spot: Spot) -> float:
    return float(mask[spot.top:spot.top + spot.size, spot.left:spot.left + spot.size].sum() / mask.sum())


def said_by(outcome) -> str:
    return "\n".join(outcome.history["outputs"]["map"]["text"])


def test_the_mask_of_a_cat_lies_on_the_cat_and_is_as_large_as_the_picture(host, drawn):
    outcome = host.run(of_drawn(drawn, "cat:0.5"))
    mask = masks(outcome)[-1]
    assert mask.shape == (101, 150)
    assert share_inside(mask, CAT) > 0.85 and 0.05 < mask.mean() < 0.25
    assert len(outcome.history["outputs"]["map"]["images"]) == 1


def test_nothing_written_shows_what_the_prompt_says_and_the_file_knows(host, drawn):
    said = said_by(host.run(of_drawn(drawn, "")))
    assert "cat: " in said and "noto style: " in said and "rose" not in said
    nothing = host.run(of_drawn(drawn, "", said=""))
    assert "None of the SAE's concepts is heard" in said_by(nothing)
    assert not masks(nothing)[-1].any()


def test_each_picture_of_a_batch_has_its_own_maps_and_what_is_silent_none(host):
    outcome = host.run(of_painted("#3, rocket", batch=2))
    shown = masks(outcome)[-4:]
    assert shown.shape == (4, 96, 96) and shown[0].any() and shown[1].any() and not shown[2:].any()
    assert not torch.equal(shown[0], shown[1])
    assert "#3: " in said_by(outcome)
    assert "rocket: not heard in the picture" in said_by(outcome)


def test_looking_changes_nothing_and_what_is_erased_does_not_change_it(host):
    plain = latents(host, graph("a cat, noto style"))
    mask = masks(host.run(of_painted()))[-1]
    erased = erase(of_painted(model=["erase", 0]), "cat")
    erased["sampler"]["inputs"]["model"] = ["checkpoint", 0]
    assert torch.equal(masks(host.run(erased))[-1], mask)
    assert torch.equal(latents(host, graph("a cat, noto style", steps=4)), plain)


def test_an_inpainting_model_looks_too(host, inpainting):
    made = of_painted("cat, dog, noto style")
    made["checkpoint"]["inputs"]["ckpt_name"] = inpainting
    assert masks(host.run(made))[-3:].any()


def test_a_prompt_of_areas_is_refused_in_a_sentence_and_combined_prompts_are_not(host):
    areas = of_painted(positive=["area", 0])
    areas["area"] = node("ConditioningSetArea", conditioning=["positive", 0], width=64, height=64, x=0, y=0,
                         strength=1.0)
    with pytest.raises(HostError, match="where cat is: no place .* prompt without areas"):
        host.run(areas)
    both = of_painted(positive=["both", 0])
    both["both"] = node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["negative", 0])
    assert masks(host.run(both))[-1].any()

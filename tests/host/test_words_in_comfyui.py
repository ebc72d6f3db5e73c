"""*Erase Words* in a real ComfyUI, on a small SD 1.5 model with random weights: words in, a file kept, a model out."""
from pathlib import Path

import pytest
import torch
from canvas_graphs import erase, graph, latents, with_picture, written
from host_graphs import node
from safetensors.torch import save_file
from small_model import ATTENTIONS, NAME

from sae_models import read_headers
from tools.comfy_host import COMFY, HostError

SAES = COMFY / "models" / "sae"
CAT = "a cat, noto style"


def files() -> list[str]:
    return sorted(path.name for path in SAES.glob("saemnesia-test *.safetensors"))


def words(text: str, prompt: str = CAT, **changes) -> dict:
    made = graph(prompt)
    settings = {"words": text, "told_from": "", "pictures": 8, "side": 64, "cfg": 2.0}
    made["words"] = node("SAEmnesiaEraseWords", model=["checkpoint", 0], clip=["checkpoint", 1], **settings | changes)
    made["sampler"]["inputs"]["model"] = ["words", 0]
    return made


def said(outcome) -> str:
    return outcome.history["outputs"]["words"]["text"][0]


@pytest.fixture(scope="module", autouse=True)
def no_file_left():
    yield
    for name in files():
        (SAES / name).unlink()


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"text": ""}, "no concept is chosen"),
    ({"text": "cat, Cat"}, "listed twice"),
    ({"text": "cat:much"}, "is not a strength"),
    ({"text": "cat", "told_from": "dog (animal"}, "cannot read the concept"),
    ({"text": "(cat:1.2)"}, "write 'cat', or 'cat:0.8'"),
    ({"text": "red, white and blue flag"}, "write 'red white and blue flag' if it is one"),
    ({"text": "cat\ud800"}, "cannot be seen"),
    ({"text": "cat:2.5"}, "expected a strength of -1 to 2 for 'cat'"),
    ({"text": "cat:1.5 -> dog"}, "expected a strength of 0 to 1 for 'cat -> dog'"),
])
def test_a_mistake_is_one_sentence_before_anything_is_painted(host, changes, sentence):
    with pytest.raises(HostError, match=sentence):
        host.run(words(**changes))
    assert not files()


@pytest.fixture(scope="module")
def first(host, no_file_left) -> str:
    """What the node says where it meets 'cat' for the first time."""
    return said(host.run(words("cat")))


def test_a_word_is_found_at_every_cross_attention_and_kept_by_the_checkpoints_name(first):
    assert first.startswith("cat: ") and "% removed" in first and "found in" in first
    assert len(files()) == 1 and files()[0].startswith(NAME.removesuffix(".safetensors"))
    assert [header.hookpoint for header in read_headers(SAES / files()[0])] == list(ATTENTIONS)


def test_a_picture_says_which_words_were_erased(host, first):
    [png] = host.run(with_picture(words("cat:0.5"))).images
    [entry] = written(png)
    assert (entry["node"], entry["sae"], entry["concepts"]) == ("words", files()[0], "cat:0.5")


def test_from_then_on_it_is_erased_at_once_like_any_concept(host, first):
    plain, before = latents(host, graph(CAT)), (SAES / files()[0]).stat().st_mtime_ns
    assert "found in" not in said(host.run(words("CAT:0.5")))
    assert (SAES / files()[0]).stat().st_mtime_ns == before
    erased = latents(host, words("cat"))
    assert not torch.equal(erased, plain)
    assert torch.equal(erased, latents(host, erase(graph(CAT), "cat", sae=files()[0], apply_to="conditional only")))
    assert torch.equal(plain, latents(host, words("cat:0")))


def test_a_negative_prompt_that_says_the_word_goes_on_pushing_away(host, first):
    def avoiding(made: dict) -> dict:
        made["negative"]["inputs"]["text"] = CAT
        return made

    erased = latents(host, avoiding(words("cat")))
    of_prompt, of_both = (latents(host, avoiding(erase(graph(CAT), "cat", sae=files()[0], apply_to=where)))
                          for where in ("conditional only", "both"))
    assert torch.equal(erased, of_prompt) and not torch.equal(erased, of_both)


def test_from_more_pictures_and_told_from_more_it_is_found_anew_and_then_kept(host, first):
    def concept():
        return read_headers(SAES / files()[0])[0].concepts[0]

    told_from = concept().told_from
    assert concept().pictures == 8 and "wolverine" not in told_from
    assert "found in" in said(host.run(words("cat", pictures=12, told_from="wolverine")))
    assert concept().pictures == 12 and "wolverine" in concept().told_from
    assert "found in" not in said(host.run(words("cat", told_from="Wolverine", prompt="a cat")))


def test_new_words_join_the_file_and_nodes_in_a_row_erase_what_one_does(host, first):
    both = said(host.run(words("cat, watercolor style"))).splitlines()
    assert "found in" not in both[0] and both[1].startswith("watercolor style: ") and "found in" in both[1]
    assert [(c.name, c.kind) for c in read_headers(SAES / files()[0])[0].concepts] == [
        ("cat", "object"), ("watercolor style", "style")]
    one, made = latents(host, words("cat, watercolor style")), words("cat")
    made["more"] = node("SAEmnesiaEraseWords",
                        **made["words"]["inputs"] | {"words": "watercolor style", "model": ["words", 0]})
    made["sampler"]["inputs"]["model"] = ["more", 0]
    off, effect = (one - latents(host, made)).abs().max(), (one - latents(host, words("cat"))).abs().max()
    assert off < 1e-3 * effect


def test_names_as_people_type_them_are_understood_and_that_is_said_before_anything_is_painted(host, first):
    text = "CAT; saber_(fate) (style):0,5"
    report, log = said(host.run(words(text))), host.log
    assert [line.partition(":")[0] for line in report.splitlines()] == ["cat", "saber_(fate)"]
    said_at = log.rindex("understood as saber_(fate) (style)")
    assert said_at < log.rindex("SAEmnesia: painting ") < log.rindex("amount cat, saber_(fate)")
    assert {c.name: c.kind for c in read_headers(SAES / files()[0])[0].concepts}["saber_(fate)"] == "style"
    assert torch.equal(latents(host, words(text)), latents(host, words("Cat\nSABER_(FATE) : 0.5")))


def test_another_lora_is_another_model_and_the_checkpoint_stays_itself_beside_it(host, first):
    lora = COMFY / "models" / "loras" / "saemnesia-test.safetensors"
    try:
        write_lora(lora)
        made = words("cat")
        made["lora"] = node("LoraLoaderModelOnly", model=["checkpoint", 0], lora_name=lora.name, strength_model=1.0)
        made["words"]["inputs"]["model"] = ["lora", 0]
        assert "found in" in said(host.run(made))
        assert "found in" not in said(host.run(words("cat:0.9", cfg=3.0)))
    finally:
        lora.unlink(missing_ok=True)
    assert len(files()) == 2


def write_lora(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v"
    save_file({f"{key}.lora_up.weight": torch.randn(320, 4, generator=generator),
               f"{key}.lora_down.weight": torch.randn(4, 768, generator=generator),
               f"{key}.alpha": torch.tensor(4.0)}, path)

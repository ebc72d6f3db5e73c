"""Block names against the host's own map of diffusers names, on the real UNet class of ComfyUI."""
import pytest
import torch
from small_model import UNET_CONFIG

from benchmarks.minicanvas import models
from sae_models import hookpoint
from sae_models.errors import SaeError

import comfy.utils  # isort: skip

SD15 = {"num_res_blocks": [2] * 4, "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}
SDXL = {"num_res_blocks": [2] * 3, "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
        "context_dim": 2048, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}


def unet(config: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return models.UNetModel(**{**UNET_CONFIG, **config}, device="meta",
                                operations=models.comfy.ops.disable_weight_init)


@pytest.mark.parametrize("config", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_names_are_those_of_the_hosts_own_map(config):
    full = {**UNET_CONFIG, **config}
    host_map = comfy.utils.unet_to_diffusers({**full, "transformer_depth": list(full["transformer_depth"]),
                                              "transformer_depth_output": list(full["transformer_depth_output"])})
    wanted = {key.removesuffix(".proj_in.weight"): value.removesuffix(".proj_in.weight")
              for key, value in host_map.items() if key.endswith(".proj_in.weight")}
    assert hookpoint.hookpoints(unet(config)) == wanted


@pytest.mark.parametrize(("config", "count"), [(SD15, 16), (SDXL, 70)], ids=["sd15", "sdxl"])
def test_cross_attentions_are_named_as_the_host_names_them_and_run_in_that_order(config, count):
    model = unet(config)
    found = hookpoint.cross_attentions(model)
    diffusers = {ldm: name for name, ldm in hookpoint.hookpoints(model).items()}
    assert len(found) == count
    running = [name for name, _ in model.named_modules() if name.endswith(".attn2")]
    running.sort(key=lambda name: ("input", "middle", "output").index(name.partition("_")[0]))  # sorted() is stable
    assert list(found.values()) == running
    for name, path in found.items():
        block, inner = path.split(".transformer_blocks.")
        assert name == f"{diffusers[block]}.transformer_blocks.{inner}"


def test_a_cross_attention_is_found_by_either_name_and_known_to_the_host_by_its_key():
    model = unet(SDXL)
    by_name = hookpoint.find(model, "unet.up_blocks.0.attentions.1.transformer_blocks.7.attn2")
    assert by_name is model.output_blocks[1][1].transformer_blocks[7].attn2
    assert hookpoint.find(model, "output_blocks.1.1.transformer_blocks.7.attn2") is by_name
    assert hookpoint.width(by_name) == 1280
    assert [hookpoint.attention_key(f"{path}.transformer_blocks.7.attn2") for path in (
        "output_blocks.1.1", "input_blocks.4.1", "middle_block.1")] == [("output", 1, 7), ("input", 4, 7),
                                                                        ("middle", 0, 7)]


def test_a_cross_attention_the_model_lacks_names_those_it_has():
    name = "up_blocks.0.attentions.1.transformer_blocks.1.attn2"
    with pytest.raises(SaeError, match=rf"no block '{name}'.*has: up_blocks.0.attentions.1.transformer_blocks.0.attn2"):
        hookpoint.find(unet({}), name)


def test_a_unet_without_a_middle_has_no_middle_block():
    assert list(hookpoint.hookpoints(unet({})).items()) == [
        ("down_blocks.1.attentions.0", "input_blocks.3.1"), ("up_blocks.0.attentions.0", "output_blocks.0.1"),
        ("up_blocks.0.attentions.1", "output_blocks.1.1")]


def test_a_block_is_found_by_either_name():
    model = unet(SD15)
    by_name = hookpoint.find(model, "unet.up_blocks.1.attentions.1")
    assert by_name is model.output_blocks[4][1]
    assert hookpoint.find(model, "output_blocks.4.1") is by_name
    assert hookpoint.width(by_name) == 1280


def test_a_block_the_model_lacks_names_those_it_has():
    with pytest.raises(SaeError, match=r"no block 'up_blocks.1.attentions.1'.*up_blocks.0.attentions.1"):
        hookpoint.find(unet({}), "up_blocks.1.attentions.1")


def test_a_model_without_unet_blocks_is_refused():
    with pytest.raises(SaeError, match="works on SD 1.x, 2.x and SDXL so far; this model is a "):
        hookpoint.find(torch.nn.Linear(2, 2), "up_blocks.1.attentions.1")

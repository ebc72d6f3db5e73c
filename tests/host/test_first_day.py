"""A ComfyUI into which nothing but this repository was put."""
from urllib.parse import quote

import pytest

from tools.comfy_host import COMFY, ComfyHost, HostError


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "comfyui-saemnesia").symlink_to((COMFY / "custom_nodes" / "comfyui-saemnesia").resolve())
    with ComfyHost("--base-directory", str(base)) as running:
        yield running


def test_where_there_is_no_file_the_list_says_so_and_what_to_do(empty):
    about = empty.get_json("/object_info/SAEmnesiaLoadSAE")["SAEmnesiaLoadSAE"]["input"]["required"]["sae_name"]
    assert about[1]["options"] == ["(no file in models/sae yet)"]
    with pytest.raises(HostError, match="use SAEmnesia Erase Words, which needs none"):
        empty.get(f"/saemnesia/concepts?sae={quote(about[1]['options'][0])}")

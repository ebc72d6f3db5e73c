"""Make a .safetensors of an SAE that is published as a pickle, from a shell, with the host's Python:

    python custom_nodes/comfyui-saemnesia/convert.py models/sae/sdxl/state_dict.pth

`--help` lists what there is to set. It is `python -m sae_models.convert`, from any folder and in any Python.
"""
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).absolute().parent)]
    runpy.run_module("sae_models.convert", run_name="__main__")

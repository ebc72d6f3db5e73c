"""Post-install step of ComfyUI-Manager, A1111 and Forge: says what is missing, installs nothing.

torch, numpy, safetensors and huggingface-hub come with every host; requirements.txt covers a host without the last two.
"""
from importlib.util import find_spec

NEEDED = ("torch", "numpy", "safetensors", "huggingface_hub")
missing = [name for name in NEEDED if find_spec(name) is None]
if missing:
    print(f"SAEmnesia needs {', '.join(missing)}: "
          f"run 'python -m pip install -r requirements.txt' with the host's Python.")

"""Train an SAE on a checkpoint from a shell, in ComfyUI's environment:

    python custom_nodes/comfyui-saemnesia/train.py --checkpoint model.safetensors \
        --concepts "cat, dog" --out models/sae/cats.safetensors

With several GPUs: `torchrun --nproc-per-node 2 train.py ...`. `--help` lists what there is to set.
"""
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).absolute().parent
COMFYUI = HERE.parents[1]

if __name__ == "__main__":
    if not (COMFYUI / "comfy").is_dir():
        sys.exit(f"error: {HERE} is not in ComfyUI's custom_nodes: run train.py from there")
    sys.path[:1] = [str(COMFYUI), str(HERE.parent)]
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    runpy.run_module(f"{HERE.name}.nodes.command", run_name="__main__")

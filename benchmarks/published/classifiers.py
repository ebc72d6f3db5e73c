"""UnlearnCanvas's two classifiers, from the files that its authors give: ViT-L/16 at 224 px, fine-tuned.

The class is timm's `vit_large_patch16_224`, which is the user's own install. A file is a pickle, `{"model_state_dict":
...}`, and is opened as `convert` opens one: tensors and plain values only.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from sae_models.convert.pickles import load_torch
from sae_models.errors import SaeError

SIDE = 224
AT_ONCE = 32


def vit_large(classes: int) -> nn.Module:
    """The untrained classifier: [n, 3, 224, 224] in -1..1 -> [n, classes]."""
    try:
        import timm
    except ImportError as error:
        raise SaeError("UnlearnCanvas's classifiers need timm: run `pip install timm` with this Python") from error
    return timm.create_model("vit_large_patch16_224.augreg_in21k", pretrained=False, num_classes=classes)


def load(path: Path, labels: Sequence[str], make: Callable[[int], nn.Module]) -> nn.Module:
    """The classifier of a file, ready to judge. Raises SaeError when it is not one that tells these labels apart."""
    found = load_torch(path)
    state = found.get("model_state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict) or "head.weight" not in state:
        raise SaeError(f"{path.name} is no classifier of UnlearnCanvas: expected a 'model_state_dict' with "
                       "'head.weight' in it")
    told = len(state["head.weight"])
    if told != len(labels):
        raise SaeError(f"{path.name} tells {told} classes apart, not the {len(labels)} from {labels[0]} to "
                       f"{labels[-1]}: the classifier of styles tells 51, that of objects 20")
    model = make(len(labels))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise SaeError(f"{path.name} is not the network that timm makes ({str(error).splitlines()[0]})") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def labels_of(model: nn.Module, paths: Sequence[Path]) -> list[int]:
    """What a classifier sees in pictures, as the benchmark shows them to it: 224 px square, -1..1."""
    found: list[int] = []
    device = next(model.parameters()).device
    for start in range(0, len(paths), AT_ONCE):
        some = torch.stack([pixels(path) for path in paths[start:start + AT_ONCE]])
        with torch.inference_mode():
            found += model(some.to(device)).argmax(1).tolist()
    return found


def pixels(path: Path) -> torch.Tensor:
    """[3, 224, 224] in -1..1."""
    with Image.open(path) as image:
        small = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 127.5 - 1

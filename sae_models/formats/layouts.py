"""How each library lays an SAE out: the names of its tensors, which way they are turned, what its configuration means.

| library | W_enc | b_enc | W_dec | b_dec | configuration |
|---|---|---|---|---|---|
| sparsify, SAeUron, SAEmnesia, ours | `encoder.weight` | `encoder.bias` | `W_dec` | `b_dec` | `cfg.json` |
| SAELens | `W_enc`, turned | `b_enc` | `W_dec` | `b_dec` | `cfg.json`, flat or with `metadata` |
| dictionary_learning | `encoder.weight` | `encoder.bias` | `decoder.weight`, turned | `b_dec` | `config.json` |
| sdxl-unbox | `encoder.weight` | `latent_bias` | `decoder.weight`, turned | `pre_bias` | `config.json` |

[d_sae, d_in] is our way, in which a latent is a contiguous row; [d_in, d_sae] is "turned". The keys tell which layout a
file has, never its name. Two libraries (SAELens, sdxl-unbox) take the k largest before the ReLU, the others after it:
relu(topk(a)) and topk(relu(a)) keep the same positive latents (where two are not equal to the last bit, of which either
may be taken), and the rest of the k are zeros that decode to nothing.
"""
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import SaeError, plain
from ..hookpoint import normalise

BLOCK = r"((down|up)_blocks\.\d+|mid_block)\.attentions\.\d+"
OUR_KEY = "saemnesia"
"""In a configuration that we exported: what the library's own format has no place for."""
ORIGIN = "saemnesia.json"
"""Beside what was downloaded from the catalogue: {base, hookpoint, ...}, which its own configuration does not say."""


@dataclass(frozen=True)
class Convention:
    """What a configuration says: how its weights are meant, and where the SAE belongs.

    centred: b_dec is subtracted from the input; scale: the input is multiplied by it first, and the output divided;
    by_norm: latents are ranked by activation times the norm of their decoder row.
    """
    k: int
    hookpoint: str = ""
    base: str = ""
    residual: bool = False
    centred: bool = True
    scale: float = 1.0
    by_norm: bool = False


class Weights(NamedTuple):
    """Of F latents, or of all: W_enc [F, d_in], b_enc [F], W_dec [F, d_in]; and b_dec [d_in]."""
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def folded(self, convention: Convention) -> "Weights":
        """The same function of the input in our convention: z = relu((x - b_dec) W_enc^T + b_enc)."""
        W_enc, b_enc, W_dec, b_dec = self
        if convention.by_norm:
            norm = W_dec.norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norm[:, None], b_enc * norm, W_dec / norm[:, None]
        if convention.scale != 1:
            W_enc, W_dec, b_dec = W_enc * convention.scale, W_dec / convention.scale, b_dec / convention.scale
        if not convention.centred:
            b_enc = b_enc + W_enc @ b_dec
        return Weights(W_enc, b_enc, W_dec, b_dec)


def _demand(config: dict[str, Any], **wanted: Any) -> None:
    """Raise SaeError for a setting under which the SAE is another function than ours; one not said is as wanted."""
    for name, value in wanted.items():
        if config.get(name) not in (None, value):
            raise SaeError(f"has {name} = {config[name]!r}, and only SAEs with {value!r} can be read here")


def _sparsify(config: dict[str, Any], folder: Path) -> Convention:
    _demand(config, activation="topk", signed=False, transcode=False, skip_connection=False, input_unit_norm=False)
    return Convention(int(config["k"]))


def _saelens(config: dict[str, Any], folder: Path) -> Convention:
    """The flat configuration until version 5, and since 6 the one that keeps what is not arithmetic in `metadata`."""
    said = config.get("metadata", {}) | config
    is_topk = "topk" in (said.get("activation_fn"), said.get("activation_fn_str"))
    _demand({"architecture": "topk" if is_topk else said.get("architecture", "standard")}, architecture="topk")
    _demand(said, reshape_activations="none", finetuning_scaling_factor=False)
    k = said["k"] if "k" in said else said["activation_fn_kwargs"]["k"]
    return Convention(int(k), said.get("hook_name") or "", centred=bool(said.get("apply_b_dec_to_input", True)),
                      scale=_saelens_scale(said.get("normalize_activations"), folder),
                      by_norm=bool(said.get("rescale_acts_by_decoder_norm", False)))


def _saelens_scale(normalisation: str | bool | None, folder: Path) -> float:
    """`expected_average_only_in` (True, long ago) is one number, which SAELens keeps beside a checkpoint and folds into
    the weights at the end of training. The other normalisations depend on the token or mix its channels."""
    if normalisation in (None, False, "none"):
        return 1.0
    _demand({"normalize_activations": normalisation if normalisation is not True else "expected_average_only_in"},
            normalize_activations="expected_average_only_in")
    scaler = folder / "activation_scaler.json"
    if not scaler.is_file():
        raise SaeError("scales its input by a number that is not in the folder: "
                       "put its activation_scaler.json there, or save the SAE with the scaling folded in")
    return float(json.loads(scaler.read_text("utf-8"))["scaling_factor"])


def _dictionary_learning(config: dict[str, Any], folder: Path) -> Convention:
    trainer = config["trainer"]
    _demand(trainer, dict_class="AutoEncoderTopK")
    return Convention(int(trainer["k"]), _block_in(str(trainer.get("submodule_name"))))


def _unbox(config: dict[str, Any], folder: Path) -> Convention:
    """Trained on a block's output minus its input."""
    return Convention(int(config["k"]), residual=True)


@dataclass(frozen=True)
class Layout:
    """Names of W_enc, b_enc, W_dec, b_dec in a file; those of [d_in, d_sae]; the configuration beside it."""
    library: str
    names: tuple[str, str, str, str]
    turned: tuple[str, ...]
    sidecar: str
    means: Callable[[dict[str, Any], Path], Convention]

    def shapes(self, d_sae: int, d_in: int) -> dict[str, tuple[int, ...]]:
        """What every tensor's shape has to be."""
        ours = zip(self.names, ((d_sae, d_in), (d_sae,), (d_sae, d_in), (d_in,)), strict=True)
        return {name: shape[::-1] if name in self.turned else shape for name, shape in ours}


OURS = Layout("sparsify", ("encoder.weight", "encoder.bias", "W_dec", "b_dec"), (), "cfg.json", _sparsify)
LAYOUTS = (
    OURS,
    Layout("SAELens", ("W_enc", "b_enc", "W_dec", "b_dec"), ("W_enc",), "cfg.json", _saelens),
    Layout("dictionary_learning", ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec"), ("decoder.weight",),
           "config.json", _dictionary_learning),
    Layout("sdxl-unbox", ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias"), ("decoder.weight",),
           "config.json", _unbox),
)


def layout_of(keys: Collection[str], name: str) -> Layout:
    """The layout whose tensors are all there; `name` names the file in the error.

    Raises SaeError with what the most similar layout would need.
    """
    nearest = max(LAYOUTS, key=lambda layout: len(set(layout.names) & set(keys)))
    missing = [tensor for tensor in nearest.names if tensor not in keys]
    if missing:
        raise SaeError(f"{name} is no SAE that can be read here: it has no {', '.join(missing)}")
    return nearest


def convention_of(layout: Layout, path: Path) -> Convention:
    """Read the configuration beside `path`; a hookpoint that it does not say is taken from the folders' names.

    Raises SaeError when it is missing or damaged, or describes another kind of SAE.
    """
    sidecar = path.with_name(layout.sidecar)
    if not sidecar.is_file():
        raise SaeError(f"{path.name} has neither our description nor a {sidecar.name} beside it: "
                       f"put the published {sidecar.name} into {path.parent}")
    try:
        config = json.loads(sidecar.read_text("utf-8"))
        said = layout.means(config, path.parent)
        origin = path.with_name(ORIGIN)
        extra = (json.loads(origin.read_text("utf-8")) if origin.is_file() else {}) | config.get(OUR_KEY, {})
        hookpoint = extra.get("hookpoint") or said.hookpoint or hookpoint_in(path)
        return replace(said, hookpoint=normalise(plain(hookpoint)), base=plain(str(extra.get("base", ""))),
                       residual=bool(extra.get("residual", said.residual)))
    except SaeError as error:
        raise SaeError(f"{path.name} in {path.parent} {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SaeError(f"{sidecar.name} in {path.parent} is damaged, or not of {layout.library} as {path.name} is "
                       f"({error!r}): put the published one there") from error


def hookpoint_in(path: Path) -> str:
    """The block that one of the two nearest folders is named after, or ""."""
    return _block_in(path.parent.name) or _block_in(path.parent.parent.name)


def _block_in(text: str) -> str:
    found = re.search(BLOCK, text)
    return found.group() if found else ""

"""The command; see the package."""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from ..concepts import Statistics
from ..errors import SaeError
from ..formats import read_statistics, write
from ..hookpoint import normalise
from . import papers, read_any


def convert(wanted: argparse.Namespace) -> str:
    """Write `wanted.dest`; the line that says what was done."""
    wanted.dest = wanted.dest or beside(wanted.source)
    if wanted.dest.suffix != ".safetensors":
        raise SaeError(f"expected a name that ends with .safetensors for what is written, got {wanted.dest.name}")
    if not wanted.dest.parent.is_dir():
        raise SaeError(f"there is no folder {wanted.dest.parent} to write into: make it first")
    if wanted.params and not wanted.concepts:
        raise SaeError("--params says how many latents the classes of --concepts have: give both")
    sae, header = read_any(wanted.source)
    statistics = read_statistics(wanted.source, header) if header.concepts else Statistics.unknown(0)
    header = replace(header, base=wanted.base or header.base, hookpoint=normalise(wanted.hookpoint) or header.hookpoint)
    if wanted.concepts:
        params = papers.read_params(wanted.params) if wanted.params else {}
        header, statistics = papers.add_concepts(header, papers.read_means(wanted.concepts), params, wanted.kind)
    write(wanted.dest, sae, header, statistics)
    return (f"wrote {wanted.dest}: {sae.config.d_sae} latents of width {sae.config.d_in}, k {sae.config.k}, at "
            f"{header.hookpoint or 'an unknown block'}, {len(header.concepts)} concepts")


def beside(source: Path) -> Path:
    """The .safetensors of the same name.

    Raises SaeError where the source is one itself, or something has that name already.
    """
    dest = source.with_suffix(".safetensors")
    if dest.exists():
        raise SaeError(f"{dest} is there already: say after {source.name} which file to write")
    return dest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sae_models.convert", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="ae.pt, state_dict.pth, or any .safetensors SAE")
    parser.add_argument("dest", type=Path, nargs="?", help="the .safetensors to write; beside the source unless given")
    parser.add_argument("--concepts", type=Path, help="the papers' cls_latents_dict_....pkl")
    parser.add_argument("--params", type=Path, help="the papers' class_params.pth: how many latents a concept has")
    parser.add_argument("--kind", default="object", choices=("object", "style"), help="what the concepts are")
    parser.add_argument("--hookpoint", default="", help="the block, where the folder does not say it")
    parser.add_argument("--base", default="", help="family of the base model, for example sd15")
    try:
        print(convert(parser.parse_args()))
    except (SaeError, OSError, SafetensorError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

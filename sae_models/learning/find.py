"""The command that finds concepts' neurons in an SAE from stored activations (SAeUron), or fits neurons of their own:

    python -m sae_models.learning.find SAE ACTIVATIONS --out concepts.safetensors --neurons 3
"""
import argparse
from dataclasses import replace
from pathlib import Path

from ..errors import SaeError
from ..formats import read_header, read_sae
from ..storage import check_writable
from ..table import add, check_addable
from . import finding, parallel
from .maps import Shards, Window
from .origin import of_stored
from .train import GIGABYTE, main
from .training import SCORED_MAPS


def find_stored() -> None:
    parser = argparse.ArgumentParser(prog="python -m sae_models.learning.find", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", type=Path, help="an SAE, ours or published")
    parser.add_argument("activations", type=Path, help="a folder of stored activations, with its index.json")
    parser.add_argument("--out", type=Path, required=True, help="the concept file to write, or to add to")
    parser.add_argument("--neurons", type=int, default=1, help="how many of the SAE's stand for a concept")
    parser.add_argument("--at-each-level", action="store_true", help="the best at each noise level")
    parser.add_argument("--own", action="store_true", help="fit a neuron of its own instead")
    parser.add_argument("--memory", type=float, default=2.0, help="gigabytes of RAM for activations")
    options = parser.parse_args()
    header, shards = read_header(options.sae), Shards(options.activations)
    origin = of_stored(shards, options.activations)
    block = header.hookpoint or origin.hookpoint
    if (block, header.config.d_in) != (origin.hookpoint, origin.d_in):
        raise SaeError(f"{options.sae.name} is for {block} (width {header.config.d_in}), and the activations are of "
                       f"{origin.hookpoint} (width {origin.d_in})")
    like = replace(header, hookpoint=block, base=header.base or origin.base)
    check_writable(options.out)
    check_addable(options.out, [like])
    window = Window(shards.make, origin.chunks, int(options.memory * GIGABYTE))
    window.move(0.0)
    maps = window.sample(SCORED_MAPS)
    if options.own:
        found = finding.own_neurons(maps, origin.subjects)
    else:
        sae = read_sae(options.sae)[0].to(parallel.device())
        found = finding.best_neurons(sae, maps, origin.subjects, options.neurons, options.at_each_level)
    add(options.out, [(like, found)])
    print(f"written: {options.out} ({options.out.stat().st_size / 1000:.0f} kB), {len(found.concepts)} concepts")


if __name__ == "__main__":
    main(find_stored)

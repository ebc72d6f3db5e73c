"""What became of each concept in a sampling run: told to the page, and written into the files of the pictures.

The host's nodes write every entry of a dict into a picture's file, which the whole run shares. It is kept hold of when
a graph is queued, because a node that is taken from the cache is not asked anything in the run; where that is the
sampler, what it wrote before is written again, if nothing that goes into it has changed. As the workflow beside it,
what is written is of the run: a picture that was painted beside it, by another sampler, has it too.
"""
import json
import uuid
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any
from weakref import WeakValueDictionary

from comfy_execution.utils import get_executing_context

from . import said

EVENT = "saemnesia.fired"
"""What `web/js/last_run.js` listens to: {"node": id, "run": id, "concepts": [{name, label, count, steps, why}]}, of one
sampling run; label: what was done, `cat` or `cat -> dog`; count: steps in which it was there; why it was in none: one
of the following, else ""."""
SILENT, LEFT_OUT, NOTHING_ASKED = "silent", "window", "strength"
KEY = "saemnesia"
"""Of a file's entry: [{node, sampler, sae, hash, concepts, actuator, start, end, apply_to, fired}]."""
SAME = ("node", "sampler", "concepts", "actuator")
"""What two entries of one erasure have in common."""
Concept = dict[str, Any]


class _Entries(dict):
    """What goes into the files of a queued graph's pictures; unlike a plain dict, it can be held weakly. graph: that
    one as it was posted, {id: node}; the host writes numbers of another kind into it."""
    graph: Mapping[str, Any] = {}


_QUEUED: WeakValueDictionary[str, _Entries] = WeakValueDictionary()
_PAINTED: dict[str, tuple[str, list[dict[str, Any]]]] = {}
"""{id of a sampler: (all that went into it when it painted last, what it wrote)}"""


def concept(name: str, label: str = "", count: int = 0, steps: int = 0, why: str = "") -> Concept:
    return {"name": name, "label": label or name, "count": count, "steps": steps, "why": "" if count else why}


def tell(node: str, concepts: Sequence[Concept]) -> None:
    """Tell the page that queued what is running, for its node of that id."""
    server, context = said.server(), get_executing_context()
    if node and concepts and context and server is not None and server.client_id is not None:
        server.send_sync(EVENT, {"node": node, "run": context.prompt_id, "concepts": list(concepts)}, server.client_id)


def follow(posted: dict[str, Any]) -> dict[str, Any]:
    """A graph is queued, with this POST: keep hold of its dict, where one of our nodes is in it."""
    nodes = posted.get("prompt")
    kinds = [node.get("class_type") for node in nodes.values() if isinstance(node, Mapping)] \
        if isinstance(nodes, Mapping) else []
    if any(str(kind).startswith("SAEmnesia") for kind in kinds):
        extra, run = posted.setdefault("extra_data", {}), str(posted.setdefault("prompt_id", str(uuid.uuid4())))
        entries = _QUEUED[run] = extra["extra_pnginfo"] = _Entries(extra.get("extra_pnginfo") or {})
        entries.graph = deepcopy(nodes)
        kept = [entry for sampler, (before, own) in list(_PAINTED.items()) if sampler in nodes
                and before == _upstream(nodes, sampler) for entry in own]
        entries.update({KEY: kept} if kept else {})
    return posted


def note(entry: Mapping[str, Any]) -> None:
    """Write this into the files of the run's pictures that are saved from now on, in place of what the same two nodes
    wrote before of the same erasure."""
    context = get_executing_context()
    entries = _QUEUED.get(context.prompt_id) if context else None
    if entries is not None:
        new = {"node": entry["node"], "sampler": context.node_id, **entry}
        others = [old for old in entries.get(KEY, []) if any(old[key] != new[key] for key in SAME)]
        entries[KEY] = [*others, new]
        own = [entry for entry in entries[KEY] if entry["sampler"] == context.node_id]
        _PAINTED[context.node_id] = _upstream(entries.graph, context.node_id), own


def _upstream(graph: Mapping[str, Any], node: str) -> str:
    """A node and all that goes into it, as one text."""
    found, left = {}, [node]
    while left:
        name = left.pop()
        if name in graph and name not in found:
            inputs = graph[name].get("inputs", {})
            found[name] = [graph[name].get("class_type"), inputs]
            left += [one[0] for one in inputs.values() if isinstance(one, list) and one and isinstance(one[0], str)]
    return json.dumps(found, sort_keys=True)

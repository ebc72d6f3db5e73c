/**
 * Which SAE file a node of the graph means, and which checkpoint its model comes from; what the server says of a file;
 * and word of files that were just made, for those who show them.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { say } from "./words.js"

export const LOADER = "SAEmnesiaLoadSAE"
/** Nodes that write a file of the name that they ask for, and the one that names it itself, by the checkpoint. */
const NAMING = ["SAEmnesiaTrain", "SAEmnesiaFindConcept", "SAEmnesiaExportConcept"]
const WORDS = "SAEmnesiaEraseWords"
const MADE = "saemnesia_file" // the node's property that keeps the name of the file that it made
const CHECKPOINTS = { ckpt_name: "checkpoints", unet_name: "diffusion_models" }
const FAR = 200 // nodes that a model is followed through

// --- walking the graph ----------------------------------------------------------------------------------

/** The graph of the workflow and those of its subgraphs. */
export function graphs() {
  const root = app.rootGraph ?? app.graph
  return [root, ...(root?.subgraphs?.values() ?? [])].filter(Boolean)
}

/** The node of an id such as "13", or "4:13" inside a subgraph. */
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph
  let node
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node
}

/** What the page keeps of a node's last run, also when it makes the nodes anew: undo, or another workflow's tab. */
export function keptOf(node) {
  const root = (app.rootGraph ?? app.graph) === node.graph
  return app.nodeOutputs?.[root ? String(node.id) : `${node.graph.id}:${node.id}`]
}

/** Call `show(node)` for every node of a workflow that was just loaded, once the page knows its last run again. */
export const afterLoading = (show) => setTimeout(() => graphs().flatMap((graph) => graph.nodes).forEach(show))

/** The nodes that stand for a subgraph. */
const hosts = (subgraph) => graphs().flatMap((graph) => graph.nodes.filter((node) => node.subgraph === subgraph))

const slotOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1

/** The link that ends in an input, or null. A subgraph's node has a getInputLink with another meaning. */
function linkInto(node, slot) {
  if (!node.graph || !(slot in (node.inputs ?? []))) return null
  if (!node.isSubgraphNode?.()) return node.getInputLink(slot)
  const ends = (link) => String(link.target_id) === String(node.id) && link.target_slot === slot
  return [...node.graph.links.values()].find(ends) ?? null
}

/** The node that feeds an input, seen through reroutes and the borders of subgraphs, or null. */
function feeder(node, slot) {
  const link = linkInto(node, slot)
  return link ? origin(node.graph, link) : null
}

function origin(graph, link) {
  if (link.originIsIoNode) return first(hosts(graph), (host) => feeder(host, link.origin_slot))
  const node = graph.getNodeById(link.origin_id)
  if (node?.isSubgraphNode?.()) return insideOf(node.subgraph, link.origin_slot)
  return node?.isVirtualNode ? (behind(node) ?? node) : node
}

/** What stands behind a node that only passes on: one of another pack may have no input, and say by itself which link
 *  it stands for. */
function behind(node) {
  const link = node.inputs?.length ? null : node.getInputLink?.(0)
  return link ? origin(node.graph, link) : feeder(node, 0)
}

function insideOf(subgraph, slot) {
  const link = subgraph.outputNode.slots[slot]?.getLinks()[0]
  return link ? origin(subgraph, link) : null
}

function first(items, find) {
  for (const item of items) {
    const found = find(item)
    if (found != null) return found
  }
  return null
}

/** The value of a node's widget, or of what is linked into it: a primitive, or a widget of the subgraph around it. */
export function widgetValue(node, name) {
  const link = linkInto(node, slotOf(node, name))
  if (!link) return node.widgets?.find((widget) => widget.name === name)?.value
  if (!link.originIsIoNode) return origin(node.graph, link)?.widgets?.[0]?.value
  return first(hosts(node.graph), (host) => widgetValue(host, host.inputs[link.origin_slot]?.name))
}

// --- what is meant --------------------------------------------------------------------------------------

/** { name } of the SAE whose concepts a node lists, or { hint } why there is none. waiting: why it is not there yet. */
export function findSae(node) {
  if (linkInto(node, slotOf(node, "concepts"))) return { hint: say("What is linked to 'concepts' chooses them.") }
  if (!linkInto(node, slotOf(node, "sae"))) return { hint: say("Link an SAE, and its concepts are listed here.") }
  const source = feeder(node, slotOf(node, "sae"))
  const made = [...NAMING, WORDS].includes(source?.comfyClass)
  const waiting = made && say("Run {node} once, and what it makes is listed here.", { node: source.title })
  const name = made ? madeBy(source) : source?.comfyClass === LOADER && widgetValue(source, "sae_name")
  if (name) return { name, waiting }
  return { hint: waiting || say("These concepts cannot be listed here: write names above.") }
}

/** The node whose list chooses a node's concepts: the one that is linked into them, or itself. */
export const chooserOf = (node) => feeder(node, slotOf(node, "concepts")) ?? node

/** The file that a node writes. */
function madeBy(node) {
  if (node.comfyClass === WORDS) return node.properties[MADE]
  const plain = String(widgetValue(node, "name") ?? "").trim().replace(/\.safetensors$/, "")
  return plain && `${plain}.safetensors`
}

/** { checkpoint, folder } that a node's model was loaded from, or null. */
export function findCheckpoint(node) {
  for (let at = node, left = FAR; at && left; left--) {
    for (const [widget, folder] of Object.entries(CHECKPOINTS)) {
      const checkpoint = widgetValue(at, widget)
      if (checkpoint) return { checkpoint, folder }
    }
    at = feeder(at, slotOf(at, "model"))
  }
  return null
}

/** { concepts, about, unfit } of an SAE file, or { error, there }: a sentence, and whether there is such a file. */
export async function readSae(name, model) {
  const query = new URLSearchParams({ sae: name, ...model })
  const asked = api.fetchApi(`/saemnesia/concepts?${query}`, { cache: "no-store" })
  const said = await asked.then((answer) => answer.json()).catch(() => ({}))
  return said.concepts || said.error ? said : { error: say("The server does not say what is in {name}: see its log.", { name }) }
}

// --- files that were just made --------------------------------------------------------------------------

const listeners = []

/** Have `listener(name)` called when a node has made a file, with the file's name. */
export const onFilesChanged = (listener) => listeners.push(listener)

/** Tell all who show files that there is a new one. */
export const tellOfFile = (name) => Promise.all(listeners.map((listener) => listener(name)))

/** Let `then` follow on one object's own callback, with what that was given. */
export function after(object, method, then) {
  const before = object[method]
  object[method] = function (...values) {
    const result = before?.apply(this, values)
    then(...values)
    return result
  }
}

app.registerExtension({
  name: "SAEmnesia.MadeFiles",
  nodeCreated(node) {
    if (![...NAMING, WORDS].includes(node.comfyClass)) return
    after(node, "onExecuted", (output) => {
      const [name] = output?.sae ?? []
      if (!name) return
      node.properties[MADE] = name
      tellOfFile(name)
    })
  },
  afterConfigureGraph: () => afterLoading((node) => {
    const [name] = (node.comfyClass === WORDS && keptOf(node)?.sae) || []
    if (name) node.properties[MADE] = name
  }),
})

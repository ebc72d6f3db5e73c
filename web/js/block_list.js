/**
 * The blocks that a model has, to choose from: a button beside *hookpoint*, whose menu writes names into it or takes them
 * out again. They are those of the checkpoint that the node's model was loaded from.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { findCheckpoint } from "./sae_source.js"
import { say } from "./words.js"

const ALL = "every cross-attention"
const UNKNOWN = "Link a model that a loader node loads, and its blocks are listed here."

let pressed = null // the button hands on no event in Nodes 2.0
addEventListener("pointerdown", (event) => { pressed = event }, true)

async function blocksOf(node) {
  const model = findCheckpoint(node)
  if (!model) return []
  const answer = await api.fetchApi(`/saemnesia/blocks?${new URLSearchParams(model)}`)
  return answer.ok ? answer.json() : []
}

const written = (widget) => String(widget.value).split(/[,\n]/).map((name) => name.trim()).filter(Boolean)

function write(node, widget, names) {
  widget.value = names.join(", ")
  widget.callback?.(widget.value, app.canvas, node)
  node.setDirtyCanvas(true, true)
}

function entry(node, widget, name) {
  const chosen = written(widget)
  const toggled = chosen.includes(name) ? chosen.filter((other) => other !== name) : [...chosen, name]
  return { content: `${chosen.includes(name) ? "✓ " : ""}${name}`, callback: () => write(node, widget, toggled) }
}

async function open(node, widget) {
  const event = pressed
  const blocks = await blocksOf(node)
  const all = { content: `${written(widget).length ? "" : "✓ "}${say(ALL)}`, callback: () => write(node, widget, []) }
  const none = { content: say(UNKNOWN), disabled: true }
  new LiteGraph.ContextMenu([all, ...(blocks.length ? blocks.map((name) => entry(node, widget, name)) : [none])],
    { event, title: say("Where to learn") })
}

/** Give a node that has a *hookpoint* the button. */
export function offerBlocks(node) {
  const widget = node.widgets?.find(({ name }) => name === "hookpoint")
  if (!widget) return
  const button = node.addWidget("button", say("choose blocks"), null, () => open(node, widget), { advanced: true })
  button.serialize = false // not in the workflow; it is the last one, so that the values before it keep their places
  button.options.serialize = false // not in the API format
}

/**
 * What a node's inputs need beside what the front end gives them, in the renderer that draws on a canvas: a text box
 * keeps its label when something is written in it, and inputs that only few need are folded away ("Show Advanced" in
 * the node's menu) unless they were changed.
 */
import { app } from "../../../scripts/app.js"
import { offerBlocks } from "./block_list.js"

const LABELLED = ["SAEmnesiaTrain", "SAEmnesiaFindConcept", "SAEmnesiaEraseWords", "SAEmnesiaExportConcept"]

const NOTHING = -4 // takes back what the canvas leaves free below every widget

const BOX = "display: flex; flex-direction: column; width: 100%; height: 100%; background: var(--comfy-input-bg);"
const LABEL = "flex: none; padding: 2px 2px 0; font: 10px/12px Inter, Arial, sans-serif; " +
  "color: var(--descrip-text); text-align: left;"

function keepLabel(widget) {
  const text = widget.element
  const label = Object.assign(document.createElement("span"), { textContent: widget.label ?? widget.name })
  label.className = "saemnesia-label"
  label.setAttribute("style", LABEL)
  const box = document.createElement("div")
  box.setAttribute("style", BOX)
  text.parentElement?.replaceChild(box, text)
  box.append(label, text)
  text.style.flex = "1 1 0px"
  text.style.minHeight = "0px"
  text.placeholder = ""
  widget.element = box
}

function fold(node) {
  const folded = node.widgets.filter((widget) => widget.options?.advanced)
  const usual = new Map(folded.map((widget) => [widget, widget.value]))
  for (const widget of folded) {
    widget.advanced = true
    widget.computeSize = () => [0, node.showAdvanced ? LiteGraph.NODE_WIDGET_HEIGHT : NOTHING]
  }
  const before = node.onConfigure
  node.onConfigure = function (...given) {
    const result = before?.apply(this, given)
    if (folded.some((widget) => widget.value !== usual.get(widget))) this.showAdvanced = true
    return result
  }
}

app.registerExtension({
  name: "SAEmnesia.NodeInputs",
  nodeCreated(node) {
    if (!LABELLED.includes(node.comfyClass)) return
    for (const widget of node.widgets ?? []) {
      if (widget.element instanceof HTMLTextAreaElement) keepLabel(widget)
    }
    offerBlocks(node)
    fold(node)
  },
})

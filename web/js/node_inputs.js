/**
 * What a node's inputs need beside what the front end gives them, in the renderer that draws on a canvas: a text box
 * keeps its label when something is written in it, and inputs that only few need are folded away ("Show Advanced" in
 * the node's menu) unless they were changed.
 */
import { app } from "../../../scripts/app.js"
import { offerBlocks } from "./block_list.js"

const LABELLED = ["SAEmnesiaTrain", "SAEmnesiaFindConcept", "SAEmnesiaEraseWords", "SAEmnesiaExportConcept"]

const NOTHING = -4 // takes back what the canvas leaves free below every widget

const LABEL = 14 // pixels

/** The label is painted on the text box's upper border: the box must stay what it is, or no subgraph can show it. */
function keepLabel({ element: box, label, name }) {
  box.ariaLabel = label ?? name
  box.placeholder = ""
  Object.assign(box.style, { boxSizing: "border-box", borderTop: `${LABEL}px solid transparent`,
    backgroundImage: `url("data:image/svg+xml,${encodeURIComponent(picture(box.ariaLabel))}")`,
    backgroundOrigin: "border-box", backgroundRepeat: "no-repeat" })
}

function picture(words) {
  const color = getComputedStyle(document.body).getPropertyValue("--descrip-text").trim() || "gray"
  const text = new XMLSerializer().serializeToString(document.createTextNode(words))
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${40 * words.length}" height="${LABEL}"><text x="4" y="10" ` +
    `font-family="Inter, Arial, sans-serif" font-size="10" fill="${color}">${text}</text></svg>`
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

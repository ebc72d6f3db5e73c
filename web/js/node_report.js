/**
 * What a node says of its work when it is done, below its widgets: "cat: 79% removed, others 0.0% touched".
 *
 * The text is a DOM widget that is never saved. It is there from the start, because Nodes 2.0 shows no widget that
 * comes later.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const REPORTING = ["SAEmnesiaEraseWords", "SAEmnesiaFindConcept", "SAEmnesiaExportConcept"]
const BEFORE = "What it does is said here after a run."
const LINE = 17
const PADDING = 10
const MARGIN = 20 // what the canvas leaves free above and below a DOM widget, together
const MOST = 8 // lines that are shown without scrolling
const LETTERS = 0.16 // lines that a letter takes in a node one pixel wide, times its width

const STYLE = "box-sizing: border-box; width: 100%; height: 100%; padding: 4px 6px; overflow-y: auto; " +
  "white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/17px Inter, Arial, sans-serif; user-select: text; " +
  "color: var(--input-text); background: var(--comfy-input-bg); border-radius: 4px; text-align: left;"

const reports = new WeakMap() // node -> { root, lines }
let made = 0 // see concept_picker.js: a removed node's element must not come back under the same name

function lines(text, width) {
  const fits = Math.max(20, width * LETTERS)
  return Math.min(MOST, text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / fits)), 0))
}

function addReport(node) {
  const root = Object.assign(document.createElement("div"), { className: "saemnesia-report", textContent: BEFORE })
  root.setAttribute("style", STYLE)
  root.setAttribute("role", "status")
  root.style.minHeight = `${LINE + PADDING}px`
  const report = { root, lines: 1 }
  const height = () => report.lines * LINE + PADDING + MARGIN
  const widget = node.addDOMWidget(`report_${++made}`, "saemnesia_report", root, {
    serialize: false, // not in the API format; the next line: not in the workflow
    hideInPanel: true, getMinHeight: height, getMaxHeight: height,
  })
  widget.serialize = false
  reports.set(node, report)
}

function show(node, text) {
  const report = reports.get(node)
  report.root.textContent = text
  report.lines = lines(text, node.size[0])
  report.root.style.minHeight = `${report.lines * LINE + PADDING}px`
  node.expandToFitContent?.()
  node.setDirtyCanvas(true, true)
}

/** The node that the server calls so: "5", or "7:5" inside of a subgraph. */
function nodeOf(id) {
  const path = String(id).split(":")
  return path.reduce((node, part) => (node?.subgraph ?? node)?.getNodeById?.(part), app.rootGraph ?? app.graph)
}

app.registerExtension({
  name: "SAEmnesia.NodeReport",
  setup() {
    api.addEventListener("progress_text", ({ detail }) => {
      const node = LiteGraph.vueNodesMode && nodeOf(detail.nodeId) // the canvas shows the host's own line
      if (reports.has(node)) show(node, detail.text)
    })
  },
  nodeCreated(node) {
    if (!REPORTING.includes(node.comfyClass)) return
    addReport(node)
    const before = node.onExecuted
    node.onExecuted = function (output, ...rest) {
      const result = before?.call(this, output, ...rest)
      if (output?.text?.length) show(this, output.text.join("\n"))
      return result
    }
  },
})

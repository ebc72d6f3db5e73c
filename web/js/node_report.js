/**
 * What a node says of its work, below its widgets: how far it is while it works ("painting picture 13 of 640, about 12
 * min left"), what came of it ("cat: 79% removed, others 0.0% touched") and of the last run ("cat: in 20 of 20 steps"),
 * and behind a fold the numbers of that; and that what it makes is not used, as long as it is not. And what people must
 * know of a run, in a corner of the page.
 *
 * The text is a DOM widget that is never saved. It is there from the start, because Nodes 2.0 shows no widget that
 * comes later.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { firedLines } from "./concept_fired.js"
import { onFired } from "./last_run.js"
import { afterLoading, keptOf, nodeOf } from "./sae_source.js"
import { retold, say } from "./words.js"

const REPORTING = ["SAEmnesiaEraseWords", "SAEmnesiaFindConcept", "SAEmnesiaExportConcept", "SAEmnesiaTrain",
  "SAEmnesiaConceptMap"]
const ERASES = "SAEmnesiaEraseWords"
const BEFORE = "What it does is said here after a run."
const LOOSE = "Nothing is erased yet: link MODEL to KSampler."
const WARNED_MS = 20000
const STOPPED = "Stopped. Queued again, it goes on where it was."
const NUMBERS = "Numbers"
const LINE = 17
const PADDING = 10
const MARGIN = 20 // what the canvas leaves free above and below a DOM widget, together
const MOST = 12 // lines that are shown without scrolling
const LETTERS = 0.16 // lines that a letter takes in a node one pixel wide, times its width

const STYLE = "box-sizing: border-box; width: 100%; height: 100%; padding: 4px 6px; overflow-y: auto; " +
  "white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/17px Inter, Arial, sans-serif; user-select: text; " +
  "color: var(--input-text); background: var(--comfy-input-bg); border-radius: 4px; text-align: left;"

const IDLE = "color: color-mix(in srgb, #f59e0b 50%, var(--input-text));"

const reports = new WeakMap() // node -> { root, said, loose, fired, fold, numbers, lines }
let made = 0 // see concept_picker.js: a removed node's element must not come back under the same name

function lines(text, width) {
  const fits = Math.max(20, width * LETTERS)
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(line.length / fits)), 0)
}

function element(tag, style, ...children) {
  const one = document.createElement(tag)
  one.setAttribute("style", style)
  one.append(...children)
  return one
}

function addReport(node) {
  const numbers = element("pre", "margin: 0; overflow-x: auto; font: 11px/17px monospace;")
  const fold = element("details", "", element("summary", "cursor: pointer;", say(NUMBERS)), numbers)
  const said = element("div", "", say(BEFORE))
  const loose = element("div", IDLE)
  const fired = element("div", "")
  const root = element("div", STYLE, said, loose, fired, fold)
  root.className = "saemnesia-report"
  loose.className = "saemnesia-loose"
  fired.className = "saemnesia-last-run"
  said.setAttribute("role", "status")
  fired.setAttribute("aria-live", "polite")
  fold.hidden = true
  const report = { root, said, loose, fired, fold, numbers, lines: 1 }
  fold.ontoggle = () => fit(node)
  const height = () => report.lines * LINE + PADDING + MARGIN
  const widget = node.addDOMWidget(`report_${++made}`, "saemnesia_report", root, {
    serialize: false, // not in the API format; the next line: not in the workflow
    hideInPanel: true, getMinHeight: height, getMaxHeight: height,
  })
  widget.serialize = false
  reports.set(node, report)
  showLoose(node)
}

/** Whether a node that erases leads anywhere: by its model, or by the file that it keeps. */
function showLoose(node) {
  const used = node.comfyClass !== ERASES || node.outputs.slice(0, 2).some(({ links }) => links?.length)
  reports.get(node).loose.textContent = used ? "" : say(LOOSE)
  fit(node)
}

function fit(node) {
  const report = reports.get(node)
  const { said, loose, fired, fold, numbers } = report
  const folded = fold.hidden ? 0 : 1 + (fold.open ? numbers.textContent.split("\n").length : 0)
  const shown = [said, loose, ...fired.children].map(({ textContent }) => textContent)
  const texts = shown.filter((text) => text).join("\n")
  report.lines = Math.min(MOST, lines(texts, node.size[0]) + folded)
  report.root.style.minHeight = `${report.lines * LINE + PADDING}px`
  node.expandToFitContent?.()
  node.setDirtyCanvas(true, true)
}

function show(node, said, numbers = "") {
  const [report, text] = [reports.get(node), retold(said)]
  if (report.said.textContent === text && report.numbers.textContent === numbers) return
  report.said.textContent = text
  report.numbers.textContent = numbers
  report.fold.hidden = !numbers
  fit(node)
}

function showFired(node, concepts) {
  const { fired } = reports.get(node)
  fired.replaceChildren(...firedLines(concepts))
  for (const line of fired.querySelectorAll(".saemnesia-idle")) line.setAttribute("style", IDLE)
  fit(node)
}

function listen(event, text) {
  api.addEventListener(event, ({ detail }) => {
    const node = nodeOf(detail.node ?? detail.node_id)
    if (reports.has(node)) show(node, text(detail))
  })
}

app.registerExtension({
  name: "SAEmnesia.NodeReport",
  setup() {
    listen("saemnesia.progress", ({ text }) => text)
    api.addEventListener("saemnesia.warning", ({ detail }) => app.extensionManager?.toast?.add(
      { severity: "warn", summary: "SAEmnesia", detail: retold(detail.text), life: WARNED_MS }))
    onFired((node, concepts) => reports.has(node) && showFired(node, concepts))
    listen("execution_interrupted", () => say(STOPPED))
    listen("execution_error", ({ exception_message }) => exception_message.trim())
  },
  afterConfigureGraph: () => afterLoading((node) => {
    if (!reports.has(node)) return
    showLoose(node)
    const kept = keptOf(node)
    if (kept?.text?.length) show(node, kept.text.join("\n"), kept.details?.join("\n"))
  }),
  nodeCreated(node) {
    if (!REPORTING.includes(node.comfyClass)) return
    addReport(node)
    const before = node.onExecuted
    node.onExecuted = function (output, ...rest) {
      const result = before?.call(this, output, ...rest)
      if (output?.text?.length) show(this, output.text.join("\n"), output.details?.join("\n"))
      return result
    }
    const linked = node.onConnectionsChange
    node.onConnectionsChange = function (...change) {
      const result = linked?.apply(this, change)
      setTimeout(() => showLoose(this)) // a link that goes is told of before it is gone
      return result
    }
  },
})

/**
 * *Load SAE*: its list follows the files that nodes make and those that are downloaded; a line below it says what the
 * chosen file is for, or what to do where there is none, and a button opens what there is to download.
 *
 * The line is a DOM widget that is never saved; it is there from the start, because Nodes 2.0 shows none that comes
 * later.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { followMode } from "./node_look.js"
import { openDownloads } from "./sae_downloads.js"
import { after, graphs, LOADER, onFilesChanged, readSae, tellOfFile, widgetValue } from "./sae_source.js"
import { retold, say as told } from "./words.js"

const NONE = "(no file in models/sae yet)" // see nodes/files.py
const LINE = 17
const PADDING = 6
const MARGIN = 20 // what the canvas leaves free above and below a DOM widget, together
const LETTER = 6.5 // pixels that a letter takes, on average
const EDGES = 38 // pixels of the node beside the text
const MOST = 9 // lines
const BUTTON = 28 // pixels, with the space above it

const STYLE = "box-sizing: border-box; width: 100%; padding: 2px 4px; overflow: auto; overflow-wrap: anywhere; " +
  "font: 12px/17px Inter, Arial, sans-serif; text-align: left; user-select: text;"
const BUTTON_STYLE = "margin: 4px 4px 0; height: 24px; padding: 0 10px; font: 12px Inter, Arial, sans-serif; " +
  "color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid var(--border-color); " +
  "border-radius: 4px; cursor: pointer;"

const lines = new WeakMap() // node -> { root, count, asked }
let made = 0 // see concept_picker.js: a removed node's element must not come back under the same name
let names = null // the files, once a node has made one

const comboOf = (node) => node.widgets?.find((widget) => widget.name === "sae_name")

function addLine(node) {
  const root = Object.assign(document.createElement("div"), { className: "saemnesia-about" })
  root.setAttribute("style", STYLE)
  root.setAttribute("role", "status")
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: told("Download..."),
    title: told("Which SAEs are published, and how large they are. Nothing is downloaded before you choose one.") })
  button.setAttribute("style", BUTTON_STYLE)
  button.onclick = () => openDownloads((name) => choose(node, name))
  const whole = document.createElement("div")
  whole.append(root, button)
  const line = { root, count: 1 }
  const height = () => line.count * LINE + PADDING + BUTTON + MARGIN
  const widget = node.addDOMWidget(`about_${++made}`, "saemnesia_about", whole, {
    serialize: false, // not in the API format; the next line: not in the workflow
    hideInPanel: true, getMinHeight: height, getMaxHeight: height,
  })
  widget.serialize = false
  lines.set(node, line)
  followMode(node, whole)
  say(node, "", false)
}

/** How many lines a text takes that breaks between words, and in those that are longer than a line. */
function linesOf(text, letters) {
  let [count, used] = [1, 0]
  for (const word of text.split(" ")) {
    if (used && used + word.length > letters) [count, used] = [count + 1, 0]
    used += word.length + 1
    for (; used > letters + 1; used -= letters) count++
  }
  return count
}

function say(node, said, isError) {
  const [line, text] = [lines.get(node), retold(said)]
  line.root.textContent = text
  line.root.style.color = isError ? "var(--error-text)" : "var(--descrip-text)"
  line.count = Math.min(MOST, linesOf(text, Math.max(20, (node.size[0] - EDGES) / LETTER)))
  line.root.style.minHeight = `${line.count * LINE + PADDING}px`
  node.expandToFitContent?.()
  node.setDirtyCanvas(true, true)
}

/** Say what the chosen file is for, if another one is chosen than before, or `again`. */
async function tell(node, again = false) {
  const line = lines.get(node)
  const name = widgetValue(node, "sae_name")
  if (!line || !name || (name === line.asked && !again)) return
  line.asked = name
  const { about, error } = await readSae(name)
  if (line.asked === name) say(node, about ?? error, Boolean(error))
}

const loaders = () => graphs().flatMap((graph) => graph.nodes.filter((node) => node.comfyClass === LOADER))

function tellAll(again = false) {
  for (const node of loaders()) tell(node, again)
}

/** The files as the server lists them now. */
async function listed() {
  const about = await (await api.fetchApi(`/object_info/${LOADER}`, { cache: "no-store" })).json()
  const [kind, more] = about[LOADER].input.required.sae_name
  return Array.isArray(kind) ? kind : more.options
}

/** Offer these files in a node; where nothing could be chosen so far, the one that was just made is. */
function offer(node, name) {
  const combo = comboOf(node)
  if (!combo || !names) return
  combo.options.values.splice(0, Infinity, ...names) // in place: Nodes 2.0 shows this very array
  const choose = combo.value === NONE && names.includes(name)
  if (choose) combo.value = name
  node.widgets = [...node.widgets] // so that Nodes 2.0 looks again
  if (choose) combo.callback?.(name, app.canvas, node)
}

/** Choose a file that has just come; its name has / in it, those of the list what the server's system has. */
async function choose(node, name) {
  await tellOfFile(name)
  const combo = comboOf(node)
  const own = names.find((one) => one.replaceAll("\\", "/") === name)
  if (!combo || !own) return
  combo.value = own
  node.widgets = [...node.widgets] // so that Nodes 2.0 looks again
  combo.callback?.(own, app.canvas, node)
}

onFilesChanged(async (name) => {
  names = await listed()
  for (const node of loaders()) offer(node, name)
  tellAll(true)
})

app.registerExtension({
  name: "SAEmnesia.Files",
  setup() {
    api.addEventListener("graphChanged", () => tellAll())
  },
  nodeCreated(node) {
    if (node.comfyClass !== LOADER) return
    addLine(node)
    offer(node, names?.[0])
    after(comboOf(node), "callback", () => tell(node))
    queueMicrotask(() => tell(node))
  },
  afterConfigureGraph: () => tellAll(),
  refreshComboInNodes() {
    names = null // every list is as the server has it now
    tellAll(true)
  },
})

/**
 * What there is to download for *Load SAE*: a dialog that lists the published SAEs with their sizes, and says how far
 * the one is that someone chose. Opening it asks no server but ComfyUI's own.
 */
import { api } from "../../../scripts/api.js"
import { retold, say } from "./words.js"

const EVERY = 500 // ms between looks at how far it is

const CSS = `
.saemnesia-downloads { width: min(720px, 92vw); max-height: 84vh; box-sizing: border-box; padding: 16px; margin: auto;
  border: 1px solid var(--border-color); border-radius: 8px; background: var(--comfy-menu-bg);
  color: var(--input-text); font: 13px/19px Inter, Arial, sans-serif; text-align: left; }
.saemnesia-downloads:focus { outline: none; }
.saemnesia-downloads[open] { display: flex; flex-direction: column; gap: 8px; }
.saemnesia-downloads::backdrop { background: rgb(0 0 0 / 50%); }
.saemnesia-downloads h3, .saemnesia-downloads p { margin: 0; font-size: 15px; }
.saemnesia-downloads p { font-size: 13px; color: var(--descrip-text); }
.saemnesia-downloads ul { list-style: none; margin: 0; padding: 0; overflow-y: auto; min-height: 120px; }
.saemnesia-downloads li { display: flex; align-items: center; gap: 12px; padding: 6px 4px;
  border-top: 1px solid var(--border-color); }
.saemnesia-downloads li > div { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.saemnesia-downloads small { display: block; font-size: 12px; line-height: 17px; color: var(--descrip-text); }
.saemnesia-downloads button { flex: none; height: 28px; padding: 0 12px; font: inherit; cursor: pointer;
  color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid var(--border-color);
  border-radius: 4px; }
.saemnesia-downloads button:disabled { opacity: 0.5; cursor: default; }
.saemnesia-downloads footer { display: flex; align-items: center; gap: 8px; min-height: 28px; }
.saemnesia-downloads footer > span { flex: 1; overflow-wrap: anywhere; user-select: text; }
.saemnesia-downloads [role="alert"] { color: var(--error-text); }
.saemnesia-downloads progress { flex: none; width: 120px; }
.saemnesia-downloads [hidden] { display: none; }
`

function element(tag, properties = {}, ...children) {
  const one = Object.assign(document.createElement(tag), properties)
  one.append(...children)
  return one
}

const inMB = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)

async function asked(path, body) {
  const options = body ? { method: "POST", body: JSON.stringify(body) } : { cache: "no-store" }
  const failed = { error: say("The server does not answer: see its log.") }
  return api.fetchApi(path, options).then((answer) => answer.json()).catch(() => failed)
}

class Downloads {
  constructor() {
    this.list = element("ul")
    this.bar = element("progress", { hidden: true })
    this.said = element("span", { role: "status" })
    this.stop = element("button", { type: "button", textContent: say("Stop"), hidden: true })
    this.stop.onclick = () => asked("/saemnesia/download", { stop: true })
    const close = element("button", { type: "button", textContent: say("Close") })
    close.onclick = () => this.dialog.close()
    this.dialog = element("dialog", { className: "saemnesia-downloads", ariaLabel: say("Download an SAE") },
      element("style", { textContent: CSS }), element("h3", { textContent: say("Download an SAE") }),
      element("p", { textContent: say("Published by others, from Hugging Face into models/sae. Nothing is downloaded " +
        "before you press a button with its size.") }),
      this.list, element("footer", {}, this.bar, this.said, this.stop, close))
    this.dialog.tabIndex = -1
    this.dialog.addEventListener("keydown", (event) => {
      event.stopPropagation() // no shortcut of the canvas
      if (event.key === "Escape") this.dialog.close() // the canvas takes this one before the browser does
    })
    document.body.append(this.dialog)
  }

  /** Show the list; chosen(name): called with the file that someone wants and that is there. */
  async open(chosen) {
    this.chosen = chosen
    this.dialog.showModal()
    await this.fill()
    const state = await asked("/saemnesia/download")
    if (state.running) this.follow()
  }

  async fill() {
    const { saes = [], error = "" } = await asked("/saemnesia/catalogue")
    this.list.replaceChildren(...saes.map((sae) => this.row(sae)))
    this.say(error, Boolean(error))
  }

  row(sae) {
    const { name, model, blocks, knows, size, licence, repository, pickled, there, file } = sae
    const button = element("button", { type: "button", textContent: there ? say("Choose") : say("Download {size}", { size }) })
    button.onclick = () => (there ? this.take(file) : this.begin(name))
    const about = [`${model}, ${blocks.join(", ")}: ${knows}.`, `${repository}, ${licence || say("licence not said")}.`]
    if (pickled) about.push(say("A pickle: what to do with it is said below the list once it is there."))
    return element("li", {}, element("div", {}, name, element("small", { textContent: about.join(" ") })), button)
  }

  take(file) {
    this.dialog.close()
    this.chosen(file)
  }

  async begin(name) {
    this.dialog.focus() // the button that has it is about to be disabled
    const { error } = await asked("/saemnesia/download", { name })
    if (error) return this.say(error, true)
    this.follow()
  }

  /** Look how far it is until it has ended, also while the dialog is closed. */
  async follow() {
    if (this.following) return
    this.following = true
    const chosen = this.chosen
    let state
    while ((state = await asked("/saemnesia/download")).running) {
      this.draw(state)
      await new Promise((resolve) => setTimeout(resolve, EVERY))
    }
    this.following = false // before the buttons can be pressed again
    this.draw(state)
    if (!state.file) return
    await this.fill()
    this.say(say("{name} is there, and chosen.", state))
    chosen(state.file)
  }

  draw({ name, done, total, running, error }) {
    this.bar.hidden = this.stop.hidden = !running
    for (const button of this.list.querySelectorAll("button")) button.disabled = running
    if (total) Object.assign(this.bar, { max: total, value: done })
    else this.bar.removeAttribute("value")
    const share = { name, done: inMB(done), total: inMB(total) }
    if (running) this.say(total ? say("{name}: {done} of {total} MB", share) : say("{name}: asking for it", share))
    else if (error) this.say(error, true)
  }

  say(text, isError = false) {
    this.said.textContent = retold(text)
    this.said.role = isError ? "alert" : "status"
  }
}

let downloads

/** Show what there is to download; chosen(name): called with the file that is to be used, once it is there. */
export function openDownloads(chosen) {
  downloads ??= new Downloads()
  downloads.open(chosen)
}

/** How our nodes look: the colour of SAE slots, and elements that are dimmed when their node is muted or bypassed. */
import { app } from "../../../scripts/app.js"

const TYPE = "SAEMNESIA_SAE"
const COLOR = "#8fce8f"
const [MUTED, BYPASSED] = [2, 4]

/** Nodes 2.0 dims the whole node by itself; the canvas draws below elements like ours and leaves them bright. */
export function followMode(node, root) {
  const before = node.onDrawForeground
  node.onDrawForeground = function (...values) {
    root.style.opacity = [MUTED, BYPASSED].includes(node.mode) ? 0.4 : ""
    return before?.apply(this, values)
  }
}

app.registerExtension({
  name: "SAEmnesia.NodeLook",
  setup() {
    const style = document.createElement("style")
    style.textContent = `:root { --color-datatype-${TYPE}: ${COLOR}; }` // what Nodes 2.0 fills the dot of a slot with
    document.head.append(style)
  },
})

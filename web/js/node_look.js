/**
 * How our nodes look and by what words they are found: the colour of SAE slots, elements that are dimmed when their node
 * is muted or bypassed, and what people call erasing.
 */
import { app } from "../../../scripts/app.js"

const TYPE = "SAEMNESIA_SAE"
const COLOR = "#8fce8f"
const [MUTED, BYPASSED] = [2, 4]
const ERASING = ["remove", "unlearn", "forget", "negative prompt", "ban", "suppress"]
const ALIASES = {
  SAEmnesiaEraseWords: ERASING,
  SAEmnesiaErase: [...ERASING, "ablate", "steer"],
  SAEmnesiaFindConcept: ["learn concept", "unlearn"],
  SAEmnesiaConceptMap: ["heat map", "heatmap", "attention map", "DAAM", "mask from text", "segment", "locate"],
  SAEmnesiaCompare: ["before after", "image comparer", "XYZ plot", "X/Y/Z plot", "grid", "contact sheet", "slider"],
  SAEmnesiaLoadSAE: ["sparse autoencoder", "concept file"],
  SAEmnesiaTrain: ["sparse autoencoder", "unlearn"],
}

/** Nodes 2.0 dims the whole node by itself; the canvas draws below elements like ours and leaves them bright. */
export function followMode(node, ...elements) {
  const before = node.onDrawForeground
  node.onDrawForeground = function (...values) {
    const dimmed = !LiteGraph.vueNodesMode && [MUTED, BYPASSED].includes(node.mode)
    for (const element of elements) element.style.opacity = dimmed ? 0.4 : ""
    return before?.apply(this, values)
  }
}

app.registerExtension({
  name: "SAEmnesia.NodeLook",
  /** Here and not in the nodes' schema, which older hosts do not let say it. */
  addCustomNodeDefs(defs) {
    for (const [kind, aliases] of Object.entries(ALIASES)) {
      if (defs[kind]) defs[kind].search_aliases = [...new Set([...(defs[kind].search_aliases ?? []), ...aliases])]
    }
  },
  setup() {
    const style = document.createElement("style")
    style.textContent = `:root { --color-datatype-${TYPE}: ${COLOR}; }` // what Nodes 2.0 fills the dot of a slot with
    document.head.append(style)
  },
})

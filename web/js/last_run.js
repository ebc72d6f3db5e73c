/**
 * What became of the concepts of each node that erases, in the last run: the server tells it whenever something was
 * sampled, and what is sampled in one run (a second pass, two samplers) is added up; of the pictures that *Compare* paints
 * of one concept, the one in which it was there most counts. It is kept until the next run that samples, in this page only.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { afterLoading, nodeOf } from "./sae_source.js"

const runs = new Map() // workflow and node -> { run, concepts: Map of label -> concept }
const listeners = []
const COMPARE = "SAEmnesiaCompare"

/** Have `listener(node, concepts)` called when it is known what became of a node's concepts. */
export const onFired = (listener) => listeners.push(listener)

/** Of a node, also when the page makes it anew. */
const placeOf = (node) => `${(app.rootGraph ?? app.graph).id} ${node.graph.id} ${node.id}`

function tell(node, concepts) {
  for (const listener of listeners) listener(node, concepts)
}

function add(node, { run, concepts }) {
  const place = placeOf(node)
  if (runs.get(place)?.run !== run) runs.set(place, { run, concepts: new Map() })
  const known = runs.get(place).concepts
  const join = node.comfyClass === COMPARE ? most : sum
  for (const concept of concepts) known.set(concept.label, join(concept, known.get(concept.label)))
  return [...known.values()]
}

const most = (one, other) => !other || one.count > other.count ? one : other

const sum = (one, other) => !other ? one : {
  ...one, count: one.count + other.count, steps: one.steps + other.steps,
  why: one.count + other.count ? "" : one.why || other.why }

app.registerExtension({
  name: "SAEmnesia.LastRun",
  setup() {
    api.addEventListener("saemnesia.fired", ({ detail }) => {
      const node = nodeOf(detail.node)
      if (!node) return
      tell(node, add(node, detail))
    })
  },
  afterConfigureGraph: () => afterLoading((node) => {
    const last = runs.get(placeOf(node))
    if (last) tell(node, [...last.concepts.values()])
  }),
})

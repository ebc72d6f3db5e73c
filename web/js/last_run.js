/**
 * What became of the concepts of each node that erases, in the last run: the server tells it whenever something was
 * sampled, and what is sampled in one run (a second pass, two samplers) is added up. It is kept until the next run that
 * samples, in this page only.
 */
import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { nodeOf } from "./sae_source.js"

const runs = new WeakMap() // node -> { run, concepts: Map of label -> concept }
const listeners = []

/** Have `listener(node, concepts)` called when it is known what became of a node's concepts. */
export const onFired = (listener) => listeners.push(listener)

function add(node, { run, concepts }) {
  if (runs.get(node)?.run !== run) runs.set(node, { run, concepts: new Map() })
  const known = runs.get(node).concepts
  for (const { label, ...concept } of concepts) known.set(label, sum({ label, ...concept }, known.get(label)))
  return [...known.values()]
}

const sum = (one, other) => !other ? one : {
  ...one, count: one.count + other.count, steps: one.steps + other.steps,
  why: one.count + other.count ? "" : one.why || other.why }

app.registerExtension({
  name: "SAEmnesia.LastRun",
  setup() {
    api.addEventListener("saemnesia.fired", ({ detail }) => {
      const node = nodeOf(detail.node)
      if (!node) return
      const concepts = add(node, detail)
      for (const listener of listeners) listener(node, concepts)
    })
  },
})

// The badge of a response: where its state is, or how far its answer has come.

import { h } from "../core/dom.js"
import { rate } from "../core/format.js"
import { icon } from "./icons.js"

const STATES = {
  hot: "in memory",
  disk: "on disk",
  evicted: "evicted",
  none: "no state",
}
const ABOUT = {
  hot: "Its state is in memory: a branch starts at once",
  disk: "Its state is on disk: a branch loads it",
  evicted: "Its state was evicted: a branch reads the conversation again",
  none: "It has no state: a branch reads the conversation",
}

/** A node's badge; on a read-only page, having no state is not worth one. */
export function stateBadge(node, isLive = false) {
  if (node.run && node.run.status !== "done") return runBadge(node.run)
  if (node.state === "none" && !node.why && !isLive) return null
  const title = [ABOUT[node.state], node.why].filter(Boolean).join(". ")
  const sign = node.state === "none" ? null : icon(node.state)
  return h("span", { class: `state is-${node.state}`, title }, sign, STATES[node.state])
}

function runBadge(run) {
  const words = { waiting: "waiting", stopped: "stopped", failed: "failed", done: "done" }
  const speed = run.rate === null ? "answering" : rate(run.rate)
  return h(
    "span",
    { class: `state is-${run.status}` },
    h("i.pulse"),
    words[run.status] ?? speed,
  )
}

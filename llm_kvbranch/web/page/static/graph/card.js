// A node of the graph as an element.

import { h } from "../core/dom.js"
import { duration, number, plain, rate } from "../core/format.js"
import { icon, reached, reachedIcon } from "../core/icons.js"

/** What states are called. */
export const STATES = {
  hot: "hot",
  disk: "on disk",
  evicted: "evicted",
  none: "no state",
}
const ABOUT = {
  hot: "Its state is in memory: a branch begins at once",
  disk: "Its state is on disk: a branch restores it",
  evicted: "Its state was evicted: a branch reads the conversation again",
  none: "It has no state: a branch reads the conversation",
}

/** A badge that says where a node's state is. Where nobody asks, having none is no news. */
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

/** The card's content and what it says of itself.
 * @param {HTMLElement} card
 * @param {import("../model/tree.js").Node} node
 * @param {object} size of `measure.js`
 * @param {{isCurrent: boolean, folded: number, isLive: boolean}} about `folded` nodes are hidden below it */
export function fillCard(card, node, size, { isCurrent, folded, isLive }) {
  const word = reached(node)
  const { input, output } = node.tokens ?? {}
  const tokens =
    output === null || output === undefined ? null : number(output + (input ?? 0))
  const time = node.ms ? `, ${duration(node.ms)}` : ""
  card.replaceChildren(
    ...[
      node.excerpt && h("span.card-excerpt", { dir: "auto" }, plain(node.excerpt)),
      h(
        "span.card-prompt",
        { dir: "auto", class: `lines-${size.prompt}` },
        node.prompt || "(no prompt)",
      ),
      size.answer &&
        h(
          "span.card-answer",
          { dir: "auto", class: `lines-${size.answer}` },
          plain(node.start) || "…",
        ),
      node.note && h("span.card-note", { dir: "auto" }, icon("note"), node.note),
      h(
        "span.card-foot",
        {},
        h("span", { class: `reached is-${word}` }, reachedIcon(word), word),
        tokens &&
          h(
            "span.card-tokens",
            { title: `${input ?? "?"} + ${output} tokens${time}` },
            `${tokens} tok`,
          ),
        isCurrent &&
          h("span.card-current", { title: "llm -c goes on from here" }, "llm -c"),
        node.starred &&
          h("span.card-star", { role: "img", "aria-label": "starred" }, icon("star")),
        h("span.space"),
        stateBadge(node, isLive),
      ),
      folded && h("span.card-folded", { data: { fold: "" } }, `+${number(folded)}`),
      !folded &&
        node.children.length &&
        h("span.card-fold", { data: { fold: "" } }, icon("minus")),
    ].filter(Boolean),
  )
}

// The content of a card, which is a node of the map.

import { h } from "../core/dom.js"
import { duration, number, plain } from "../core/format.js"
import { reached } from "../model/tree.js"
import { stateBadge } from "../widgets/badges.js"
import { icon, reachedIcon } from "../widgets/icons.js"

/** Fill a card.
 * @param {HTMLElement} card
 * @param {import("../model/tree.js").Node} node
 * @param {object} size of `measure.js`
 * @param {{isCurrent: boolean, folded: number, isLive: boolean}} about `folded` is the number
 *   of nodes hidden below it */
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
          h("span.card-current", { title: "llm -c continues from here" }, "llm -c"),
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

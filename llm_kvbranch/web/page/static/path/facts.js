// The line under an answer: what was reused, what was read, how fast it came.

import { h } from "../core/dom.js"
import { counted, duration, number, rate } from "../core/format.js"
import { icon } from "../widgets/icons.js"

const ENDED = {
  length: "reached the token limit",
  cancelled: "stopped",
  stopped: "stopped",
  failed: "failed",
}

/** The line under a finished answer; it names the model where that changes.
 * @param {object} turn as path.json has it @param {string} [model] of the turn before */
export function factsLine(turn, model) {
  const facts = turn.facts ?? {}
  const parts = [
    ...reuse(facts),
    ...speed(facts),
    ENDED[facts.finish_reason],
    turn.model === model ? null : turn.model?.replace(/^kvllama\//, ""),
  ]
  const line = h(
    "p.facts",
    {},
    reuseBar(facts),
    parts.filter(Boolean).map((part) => h("span", {}, part)),
  )
  if (facts.miss_reason) {
    line.append(
      h(
        "span.miss",
        { title: "Why no more of the prompt was reused" },
        `cache miss: ${facts.miss_reason}`,
      ),
    )
  }
  return line
}

/** How much of the prompt was reused, from memory or disk, and how much was read. */
function reuse({
  restored_tokens: restored,
  resident_tokens: resident,
  prefilled_tokens: read,
}) {
  const there =
    restored && restored === resident
      ? `${number(restored)} from memory`
      : restored !== undefined && `${number(restored)} reused`
  const some =
    resident && resident < restored ? `${number(resident)} of them from memory` : null
  return [there, some, read !== undefined ? `${number(read)} read` : null]
}

function speed(facts) {
  const { ttft_ms: first, decode_tps: tps, generated_tokens: n } = facts
  return [
    first === undefined ? null : `first token ${duration(first)}`,
    n === undefined ? null : counted(n, "token"),
    tps ? rate(tps) : null,
  ]
}

/** How much of the prompt was reused, as a bar. */
function reuseBar({ restored_tokens: restored, prefilled_tokens: read }) {
  if (read === undefined || !(restored + read)) return null
  const share = restored / (restored + read)
  const title = `${Math.floor(share * 100)}% of the prompt was reused`
  const bar = h("span.reuse", { role: "img", "aria-label": title, title }, h("i"))
  bar.firstChild.style.width = `${share * 100}%`
  return bar
}

/** The line under an answer in progress. @param {import("../model/run.js").Run} run */
export function runLine(run, stop) {
  const seconds = (performance.now() - run.asked) / 1000
  const words =
    run.status === "waiting"
      ? [`waiting ${seconds.toFixed(1)} s`]
      : [counted(run.tokens, "token"), run.rate === null ? null : rate(run.rate)]
  const button = h(
    "button.stop",
    { type: "button", title: "Stop (Esc)", on: { click: stop } },
    icon("stop"),
    "Stop",
  )
  return h(
    "p.facts.is-live",
    {},
    h("i.pulse"),
    words.filter(Boolean).map((word) => h("span", {}, word)),
    button,
  )
}

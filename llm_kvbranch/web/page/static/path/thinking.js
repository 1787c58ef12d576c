// The thinking before an answer: folded, and open while nothing but thinking has arrived.

import { h } from "../core/dom.js"
import { counted } from "../core/format.js"
import { MarkdownView } from "../markdown/view.js"

export class Thinking {
  constructor() {
    this.markdown = new MarkdownView()
    this.summary = h("summary")
    this.text = h("div.thoughts", {}, this.markdown.element)
    this.element = h("details.thinking", { hidden: true }, this.summary, this.text)
    this.isChosen = false // whether somebody has opened or closed it
    this.summary.addEventListener("click", () => (this.isChosen = true))
  }

  /** @param {{reasoning?: string, text: string, facts?: object}} turn
   * @param {?import("../model/run.js").Run} run */
  show({ reasoning, text, facts }, run) {
    this.element.hidden = !reasoning
    if (!reasoning) return
    const isRunning = Boolean(run?.isRunning) && !text
    const { thinking_tokens: n, thinking_cut: isCut } = facts ?? {}
    const about = [n && counted(n, "token"), isCut && "reached its limit"]
    const words = isRunning ? "Thinking…" : ["Thinking", ...about].filter(Boolean).join(", ")
    if (words !== this.summary.textContent) this.summary.textContent = words
    this.element.classList.toggle("is-running", isRunning)
    if (!this.isChosen) this.element.open = isRunning
    this.markdown.show(reasoning)
  }
}

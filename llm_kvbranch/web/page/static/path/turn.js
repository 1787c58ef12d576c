// One turn of a conversation: how it was reached, the prompt, the answer.
//
// The idea: a turn keeps its element while the path around it changes, and a part of it is
// drawn again only when what it shows has changed.

import { pointsOf } from "../core/codepoints.js"
import { h } from "../core/dom.js"
import { plain } from "../core/format.js"
import { MarkdownView } from "../markdown/view.js"
import { reached } from "../model/tree.js"
import { stateBadge } from "../widgets/badges.js"
import { icon, reachedIcon } from "../widgets/icons.js"
import { cutNote, linkBranches, marksOf } from "./excerpts.js"
import { factsLine, runLine } from "./facts.js"
import { failure } from "./failure.js"
import { note } from "./note.js"
import { Thinking } from "./thinking.js"
import { siblingSwitch, toolsOf } from "./tools.js"

const LONG = 1200 // characters from which a prompt is folded
const LONG_LINES = 14

export class TurnView {
  /** @param {{state: import("../model/state.js").State, does: object,
   *   pageOf: (node: object) => string, showExcerpt: (id: string) => void}} pane */
  constructor(pane) {
    this.pane = pane
    this.markdown = new MarkdownView()
    this.answer = h("div.answer", {}, this.markdown.element)
    this.head = h("header.turn-head")
    this.prompt = h("div.prompt")
    this.thinking = new Thinking()
    this.foot = h("div.turn-foot")
    this.element = h(
      "article.turn",
      { tabindex: "-1" },
      this.head,
      this.prompt,
      this.thinking.element,
      this.answer,
      this.foot,
    )
    this.isOpen = false
    this.made = {}
  }

  /** @param {object} turn @param {{node: object, index: number, isLast: boolean, run: ?object}} about */
  update(turn, about) {
    this.turn = turn
    this.about = about
    const { node, index, isLast } = about
    this.element.dataset.id = turn.id
    this.element.setAttribute(
      "aria-label",
      `Turn ${index + 1}: ${turn.question.slice(0, 80)}`,
    )
    this.element.classList.toggle("is-last", isLast)
    this.element.classList.toggle("is-starred", Boolean(turn.starred))
    this.#once(
      "head",
      [
        turn.id,
        node.verb,
        node.mode,
        node.excerpt,
        node.state,
        node.why,
        turn.starred,
        isLast,
        index,
        this.pane.state.tree.siblings(node.id).map((each) => each.id),
        node.run?.status,
        this.pane.state.compared.includes(node.id),
      ],
      () => this.#drawHead(),
    )
    this.element.classList.toggle("is-apart", Boolean(turn.apart) && index > 0)
    this.#once(
      "prompt",
      [
        turn.question,
        turn.quoted,
        turn.system,
        turn.results,
        turn.attachments,
        this.isOpen,
      ],
      () => this.#drawPrompt(),
    )
    this.thinking.show(turn, about.node.run)
    this.#drawAnswer()
    this.#drawFoot()
  }

  /** Draw a part if the values that it shows have changed. */
  #once(part, from, draw) {
    const key = JSON.stringify(from)
    if (this.made[part] === key) return
    this.made[part] = key
    draw()
  }

  #drawHead() {
    const { node, index, isLast } = this.about
    const word = reached(node)
    const badge = node.run && !node.run.isLogged ? null : stateBadge(node)
    const verb = h("span", { class: `reached is-${word}` }, reachedIcon(word), word)
    const from = node.excerpt
      ? h(
          "button.from.link",
          {
            type: "button",
            title: "Show where it branches off",
            on: { click: () => this.pane.showExcerpt(this.turn.id) },
          },
          h("q", { dir: "auto" }, plain(node.excerpt).replace(/\s+/g, " ").slice(0, 90)),
        )
      : null
    const anew =
      this.turn.apart &&
      index > 0 &&
      h("span.anew", { title: "The model sees nothing of what is above" }, "new context")
    const number = h(
      "a.turn-number",
      {
        href: this.pane.pageOf(node),
        title: isLast ? "Selected" : "Select this turn",
        data: { select: node.id },
      },
      `${index + 1}`,
    )
    this.head.replaceChildren(
      ...[
        number,
        verb,
        anew,
        from,
        siblingSwitch(this.pane, node),
        h("span.space"),
        toolsOf(this.pane, node, this.turn),
        badge,
      ].filter(Boolean),
    )
  }

  #drawPrompt() {
    const { question, quoted, system } = this.turn
    const isLong =
      question.length > LONG || question.split("\n", LONG_LINES + 1).length > LONG_LINES
    const text = h(
      "p.question",
      { dir: "auto", class: isLong && !this.isOpen ? "is-folded" : "" },
      question,
    )
    const more = isLong
      ? h(
          "button.link.more",
          {
            type: "button",
            "aria-expanded": String(this.isOpen),
            on: { click: () => this.#toggle() },
          },
          this.isOpen ? "Show less" : "Show all",
        )
      : null
    const parts = [
      system &&
        h(
          "details.system",
          {},
          h("summary", {}, "System prompt"),
          h("p", { dir: "auto" }, system),
        ),
      sentAlong(this.turn),
      quoted &&
        h(
          "blockquote.quoted",
          { dir: "auto", class: `is-${reached(this.about.node)}` },
          quoted,
        ),
      text,
      more,
    ]
    this.prompt.replaceChildren(...parts.filter(Boolean))
  }

  #toggle() {
    this.isOpen = !this.isOpen
    this.update(this.turn, this.about)
  }

  #drawAnswer() {
    const { turn } = this
    const points = pointsOf(turn.text)
    const placed = turn.children.filter(
      (child) => child.end !== null && child.end !== undefined,
    )
    const marks = marksOf(placed, points)
    const cut = turn.cut === null || turn.cut === undefined ? null : points.unit(turn.cut)
    const isCut = cut !== null && cut < turn.text.trimEnd().length
    this.markdown.show(turn.text, { marks, cut: isCut ? cut : null })
    this.#once(
      "links",
      [
        turn.text.length,
        placed.map(({ id, question, start, end }) => [id, question, start, end]),
        cut,
      ],
      () => {
        linkBranches(this.markdown, placed, (id) =>
          h("a", { href: this.pane.pageOf({ id }), data: { select: id } }),
        )
      },
    )
    this.element.classList.toggle("has-cut", isCut)
    this.answer.hidden = !turn.text
  }

  #drawFoot() {
    const { turn, about } = this
    const { run } = about.node
    if (run?.isRunning) {
      this.made.foot = null
      this.foot.replaceChildren(runLine(run, () => this.pane.does.stop(run)))
      return
    }
    const isCut = this.element.classList.contains("has-cut")
    this.#once(
      "foot",
      [
        turn.facts,
        turn.note,
        turn.model,
        about.before?.model,
        turn.calls,
        isCut,
        run?.status,
        run?.error?.message,
      ],
      () => {
        const calls = (turn.calls ?? []).map((call) =>
          h("p.call", {}, h("code", {}, `${call.name}(${JSON.stringify(call.arguments)})`)),
        )
        const failed = run && run.status === "failed" ? failure(run, this.pane.does) : null
        const line =
          failed || run?.status === "stopped" ? null : factsLine(turn, about.before?.model)
        const stopped =
          run?.status === "stopped"
            ? h("p.facts", {}, h("span", {}, icon("stop"), "stopped"))
            : null
        const parts = [
          calls,
          isCut && cutNote(),
          failed,
          stopped,
          line,
          note(this.pane, turn),
        ]
        this.foot.replaceChildren(...parts.flat().filter(Boolean))
      },
    )
  }
}

/** What was sent with a prompt: attachments and tool results. */
function sentAlong({ results = [], attachments = [] }) {
  if (!results.length && !attachments.length) return null
  const given = results.map(({ name, output }) =>
    h(
      "li",
      {},
      h("span", {}, `${name ?? "tool"} returned`),
      h(
        "code",
        { tabindex: "0" },
        typeof output === "string" ? output : JSON.stringify(output),
      ),
    ),
  )
  const files = attachments.map((about) => h("li", {}, icon("link"), h("span", {}, about)))
  return h("ul.sent-along", {}, files, given)
}

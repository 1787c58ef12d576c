// The buttons and the menu of a turn.

import { h } from "../core/dom.js"
import { icon } from "../widgets/icons.js"
import { menuButton } from "../widgets/menu.js"

/** A switch between a node and its siblings, if it has any. */
export function siblingSwitch(pane, node) {
  const all = pane.state.tree.siblings(node.id)
  if (all.length < 2) return null
  const at = all.indexOf(node)
  const step = (way, name, label) => {
    const to = all[at + way]
    const props = {
      type: "button",
      "aria-label": label,
      title: label,
      disabled: !to,
      on: { click: () => pane.state.select(to.id) },
    }
    return h("button.quiet", props, icon(name))
  }
  return h(
    "span.siblings",
    { role: "group", "aria-label": `Sibling ${at + 1} of ${all.length}` },
    step(-1, "back", "Previous sibling"),
    h("span", {}, `${at + 1}/${all.length}`),
    step(1, "forward", "Next sibling"),
  )
}

/** The buttons of a turn. */
export function toolsOf(pane, node, turn) {
  const { state, does } = pane
  if (node.run && !node.run.isLogged) return null
  const button = (name, label, key, act, more = {}) =>
    h(
      "button.quiet",
      {
        type: "button",
        "aria-label": label,
        title: key ? `${label} (${key})` : label,
        on: { click: act },
        ...more,
      },
      icon(name),
    )
  const starLabel = node.starred ? "Remove the star" : "Star"
  const star = button("star", starLabel, "s", () => does.star(node.id), {
    class: node.starred ? "in-menu is-on" : "in-menu",
    "aria-pressed": String(Boolean(node.starred)),
  })
  const isCompared = state.compared.includes(node.id)
  const compare = button(
    "columns",
    isCompared ? "Remove from comparison" : "Add to comparison",
    "c",
    () => state.compare(node.id),
    {
      class: isCompared ? "in-menu is-on" : "in-menu",
      "aria-pressed": String(isCompared),
    },
  )
  const live = state.isLive && [
    button("retry", "Retry: other answers to the same prompt", "r", () =>
      does.retry(node.id),
    ),
    button("edit", "Edit the prompt: creates a branch beside this one", "e", () =>
      does.edit(node.id),
    ),
  ]
  const noteLabel = turn.note ? "Edit the note" : "Add a note"
  const write = state.mayWrite && [
    star,
    button("note", noteLabel, "n", () => does.note(node.id), { class: "in-menu" }),
  ]
  return h(
    "span.tools",
    {},
    live,
    write,
    compare,
    menuButton("More", () => moreOf(pane, node, turn)),
  )
}

function moreOf({ state, does }, node, turn) {
  const isCompared = state.compared.includes(node.id)
  return [
    state.mayWrite && {
      icon: "star",
      label: node.starred ? "Remove the star" : "Star",
      key: "s",
      act: () => does.star(node.id),
    },
    state.mayWrite && {
      icon: "note",
      label: turn.note ? "Edit the note" : "Add a note",
      key: "n",
      act: () => does.note(node.id),
    },
    {
      icon: "columns",
      label: isCompared ? "Remove from comparison" : "Add to comparison",
      key: "c",
      act: () => state.compare(node.id),
    },
    { icon: "copy", label: "Copy the answer", act: () => does.copyAnswer(turn) },
    { icon: "link", label: "Copy a link", key: "y", act: () => does.copyLink(node.id) },
    { icon: "download", label: "Export…", key: "o", act: () => does.exportFrom(node.id) },
    node.children.length && {
      icon: "graph",
      label: state.folded.has(node.id) ? "Unfold in the map" : "Fold in the map",
      key: "Space",
      act: () => state.fold(node.id),
    },
    state.mayWrite && {
      icon: "trash",
      label: "Prune…",
      key: "x",
      isDanger: true,
      act: () => does.prune(node.id),
    },
  ].filter(Boolean)
}

// The dialog with all keyboard shortcuts.

import { h } from "../core/dom.js"
import { openDialog } from "../widgets/dialog.js"

/** @param {{group: string, keys: string[], about: string, live?: boolean}[]} bindings
 * @param {boolean} isLive */
export function openHelp(bindings, isLive) {
  const shown = bindings.filter((each) => each.about && (isLive || !each.live))
  const groups = [...new Set(shown.map((each) => each.group))]
  const sections = groups.map((group) =>
    h(
      "section",
      {},
      h("h3", {}, group),
      h(
        "dl",
        {},
        shown
          .filter((each) => each.group === group)
          .map(({ keys, about }) =>
            h(
              "div",
              {},
              h(
                "dt",
                {},
                keys.map((key) => h("kbd", {}, shownKey(key))),
              ),
              h("dd", {}, about),
            ),
          ),
      ),
    ),
  )
  const body = [h("div.help", {}, sections)]
  openDialog({ title: "Keyboard shortcuts", name: "help", body })
}

const NAMES = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  Enter: "⏎",
  Escape: "Esc",
  " ": "Space",
}

function shownKey(key) {
  return NAMES[key] ?? key
}

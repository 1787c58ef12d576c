// The address bar: one address per response, so that back, forward and reload work.

const QUICKLY = 700 // ms: key presses closer than this make one entry in the history

/** Keep the address in step with the selected response. @param {object} app */
export function keepPlace({ state, api }) {
  let last = 0
  const to = (id, replace) => {
    const url = api.page(id)
    if (replace) history.replaceState({ id }, "", url)
    else history.pushState({ id }, "", url)
  }
  history.replaceState({ id: state.selected }, "", location.href)

  state.on("select", ({ id, push, by }) => {
    const run = state.tree.get(id)?.run
    if (!push || (run && !run.isLogged)) return
    const now = performance.now()
    to(id, by === "key" && now - last < QUICKLY)
    last = by === "key" ? now : 0
  })
  state.on("logged", (run) => to(run.id, false))
  addEventListener("popstate", (event) => {
    const id = event.state?.id
    if (id && state.tree.get(id)) state.select(id, { push: false })
    else if (id) location.reload() // a response of another tree, or one that is gone
  })
}

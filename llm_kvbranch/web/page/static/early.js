// The theme that somebody chose, before anything is painted in another one.
// A plain script, for it has to run at once: see core/theme.js.
;(() => {
  let theme = null
  try {
    theme = JSON.parse(localStorage.getItem("kvbranch:theme"))
  } catch {
    // nothing is kept here
  }
  const isLight = matchMedia("(prefers-color-scheme: light)").matches
  document.documentElement.dataset.theme = theme ?? (isLight ? "light" : "dark")
})()

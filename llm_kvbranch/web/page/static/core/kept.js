// Values kept in the browser's storage. Where it refuses, nothing is kept.

function keeper(storage) {
  return {
    /** @param {string} name @param {any} [otherwise] */
    get(name, otherwise = null) {
      try {
        return JSON.parse(storage().getItem(`kvbranch:${name}`)) ?? otherwise
      } catch {
        return otherwise
      }
    },
    /** null removes it */
    set(name, value) {
      try {
        if (value === null) storage().removeItem(`kvbranch:${name}`)
        else storage().setItem(`kvbranch:${name}`, JSON.stringify(value))
      } catch {
        // full, or not allowed
      }
    },
  }
}

/** Kept permanently. */
export const kept = keeper(() => localStorage)
/** Kept while this tab is open. */
export const keptInTab = keeper(() => sessionStorage)

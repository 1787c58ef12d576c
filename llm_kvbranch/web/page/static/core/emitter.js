// Events by name, and their listeners.

export class Emitter {
  #listeners = new Map()

  /** @param {string} event @param {(value: any) => void} listener */
  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, [])
    this.#listeners.get(event).push(listener)
  }

  emit(event, value) {
    for (const listener of this.#listeners.get(event) ?? []) listener(value)
  }
}

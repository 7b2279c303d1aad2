// What the page shows, kept in its address after `#`, so that every view can be linked to.

/** The state that an address stands for: its view and what it is of. */
export function parse(hash) {
  return { view: "saes", ...Object.fromEntries(new URLSearchParams(hash.replace(/^#/, ""))) };
}

/** The address of a state. */
export function address(state) {
  const given = Object.entries(state).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return `#${new URLSearchParams(given)}`;
}

export const current = () => parse(window.location.hash);

/** Go to a state. */
export function go(state) {
  window.location.hash = address(state);
}

/** Change part of the state in place, without a step in the browser's history and without drawing anew. */
export function note(changes) {
  window.history.replaceState(null, "", address({ ...current(), ...changes }));
}

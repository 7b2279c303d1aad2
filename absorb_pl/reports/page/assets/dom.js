// Elements are made here and nowhere else; children are text or elements, never HTML, so a word with tags in it is text.

/** An element with attributes; `on…` attributes are listeners, and null or false ones are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Text in which what stands between backticks is code. */
export function prose(text) {
  return text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));
}

/** A choice of one of several values. */
export function select(label, values, chosen, onchange, name = (value) => value) {
  const options = values.map((value, at) => h("option", { value: at, selected: value === chosen }, name(value)));
  const list = h("select", { "aria-label": label, onchange: (event) => onchange(values[event.target.value]) }, options);
  return h("label", { class: "choice" }, h("span", {}, label), list);
}

/** A titled part of a view. */
export function section(title, note, ...content) {
  return h("section", {}, h("h2", {}, title), note ? h("p", { class: "note" }, prose(note)) : null, ...content);
}

/** Names and values in two columns. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

// Sortable tables, made by Tabulator. Cells and titles are elements or text nodes, as Tabulator takes strings for HTML.
/* global Tabulator */
import { h } from "#dom";
import { isNumber, number, percent } from "#format";

const NARROW = 640;
const text = (value) => document.createTextNode(value ?? "");

/** A column of text; `link` gives the address that a row's text leads to. */
export const words = (title, field, { link, ...rest } = {}) => ({
  title,
  field,
  show: (row) => (link ? h("a", { href: link(row) }, row[field]) : text(row[field])),
  ...rest,
});

/** A column of numbers. */
export const numbers = (title, field, { show = number, ...rest } = {}) => ({
  title,
  field,
  show: (row) => text(show(row[field])),
  isNumber: true,
  ...rest,
});

/** A column of rates, drawn as bars from 0 to the column's greatest, with their intervals as whiskers. */
export const rates = (title, field, { low, high, most = 1, ...rest }) => ({
  title,
  field,
  show: (row) => bar(row[field], row[low], row[high], most),
  isNumber: true,
  minWidth: 150,
  ...rest,
});

function bar(rate, low, high, most) {
  if (!isNumber(rate)) return h("span", { class: "missing" }, "not evaluable");
  const at = (share) => `${((100 * Math.max(0, Math.min(most, share))) / most).toFixed(2)}%`;
  const whisker = isNumber(low) && h("i", { style: `left:${at(low)};right:calc(100% - ${at(high)})` });
  const track = h("span", { class: "track", "aria-hidden": true }, h("b", { style: `width:${at(rate)}` }), whisker || null);
  const ends = isNumber(low) ? ` [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]` : "";
  return h("span", { class: "rate" }, h("span", {}, percent(rate) + ends), track);
}

/** A table of rows. `sort` names a field to sort by at first. */
export function table(rows, columns, { sort, descending = true, height, label } = {}) {
  const place = h("div", { class: "table", role: "region", "aria-label": label });
  const isNarrow = document.documentElement.clientWidth < NARROW;
  const made = columns
    .filter((column) => !(isNarrow && column.isWideOnly))
    .map(({ title, field, show, isNumber: ofNumbers, isWideOnly: _, hint, filter, ...rest }) => ({
      title: field,
      field,
      titleFormatter: () => h("span", { title: hint }, title),
      formatter: (cell) => show(cell.getRow().getData()),
      hozAlign: ofNumbers ? "right" : "left",
      headerHozAlign: ofNumbers ? "right" : "left",
      sorter: ofNumbers ? (a, b) => (isNumber(a) ? a : -Infinity) - (isNumber(b) ? b : -Infinity) : "string",
      headerSortStartingDir: ofNumbers ? "desc" : "asc",
      ...(filter ? { headerFilter: "input", headerFilterPlaceholder: "filter" } : {}),
      ...rest,
    }));
  requestAnimationFrame(() => {
    if (!place.isConnected) return;
    const grid = new Tabulator(place, {
      data: rows,
      columns: made,
      layout: "fitDataStretch",
      ...(height && rows.length > 12 ? { height } : {}),
      initialSort: sort ? [{ column: sort, dir: descending ? "desc" : "asc" }] : [],
      placeholder: "Nothing here.",
      columnDefaults: { resizable: "header" },
    });
    grid.on("tableBuilt", () => place.querySelectorAll(".tabulator-col.tabulator-sortable").forEach(sortsByKey));
  });
  return place;
}

/** Headers can be reached by Tab, and sort on Enter. */
function sortsByKey(head) {
  const title = head.querySelector(".tabulator-col-title");
  title.tabIndex = 0;
  title.setAttribute("role", "button");
  title.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      head.querySelector(".tabulator-col-sorter, .tabulator-col-content").click();
    }
  });
}

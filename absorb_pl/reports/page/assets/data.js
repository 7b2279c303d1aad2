// The page's data: packed tables in script elements, unpacked when they are first read.

const kept = new Map();

/** What a block holds: tables by name, each a list of rows; and under `about`, plain values. */
export function block(name) {
  if (!kept.has(name)) kept.set(name, unpack(document.getElementById(`data-${name}`).textContent));
  return kept.get(name);
}

async function unpack(text) {
  const packed = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const columns = header.columns.map((column) => values(column, bytes.subarray(4 + length)));
  const found = { about: header.about };
  for (const [table, { rows, names, at }] of Object.entries(header.tables)) {
    found[table] = Array.from({ length: rows }, (_, row) => {
      const entry = {};
      names.forEach((name, place) => (entry[name] = columns[at[place]][row]));
      return entry;
    });
  }
  return found;
}

/** Values of a column. Numbers lie byte plane by byte plane, little end first, as they compress better so. */
function values(column, bytes) {
  if (column.values) return column.values;
  const { kind, start, rows } = column;
  const size = { u1: 1, i4: 4, f4: 4, f8: 8 }[kind];
  const whole = new Uint8Array(rows * size);
  for (let plane = 0; plane < size; plane++) {
    for (let row = 0; row < rows; row++) whole[row * size + plane] = bytes[start + plane * rows + row];
  }
  const numbers = new { u1: Uint8Array, i4: Int32Array, f4: Float32Array, f8: Float64Array }[kind](whole.buffer);
  if (column.levels) return Array.from(numbers, (level) => column.levels[level]);
  return column.isBool ? Array.from(numbers, Boolean) : numbers;
}

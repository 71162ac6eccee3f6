const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Text goes in as text, never as HTML: ids and names are other people's.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function draw(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const parts = [1, 3, 5].map((start) => {
    const [a, b] = [low, low + 1].map((index) => parseInt(VIRIDIS[index].slice(start, start + 2), 16));
    return Math.round(a + (b - a) * (at - low));
  });
  return `rgb(${parts.join(",")})`;
}

const count = (number) => number.toLocaleString("en-US");
const short = (number) => number.toLocaleString("en-US", { notation: "compact" });
const fixed = (number, digits) => (number === null || number === undefined ? "–" : number.toFixed(digits));

// Axes of a chart: a frame with ticks; x and y turn values into places.
function frame(caption, note, { xs, ys, xLabel, yLabel, xMax = 1, yMax = 1, format = String, height = 190 }) {
  const [left, right, top, bottom, width] = [50, 8, 8, 34, 340];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${caption}. ${note}` });
  const x = (value) => left + (value / xMax) * (width - left - right);
  const y = (value) => height - bottom - (value / yMax) * (height - top - bottom);
  for (const tick of ys) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(draw("text", { x: left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, format(tick)));
  }
  for (const [tick, name] of xs) {
    svg.append(draw("text", { x: x(tick), y: height - bottom + 14, "text-anchor": "middle" }, name));
  }
  svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: y(0), y2: y(0) }));
  svg.append(draw("text", { x: x(xMax / 2), y: height - 4, "text-anchor": "middle" }, xLabel));
  const middle = y(yMax / 2);
  svg.append(draw("text", { x: 9, y: middle, "text-anchor": "middle", transform: `rotate(-90 9 ${middle})` }, yLabel));
  const figure = make("figure", { class: "chart" }, make("figcaption", {}, caption, make("small", {}, note)), svg);
  return { figure, svg, x, y };
}

function niceTicks(most) {
  const power = 10 ** Math.floor(Math.log10(most || 1));
  const step = [0.2, 0.25, 0.5, 1, 2].map((part) => part * power).find((size) => most / size <= 5) || power;
  return Array.from({ length: Math.floor(most / step + 1e-9) + 1 }, (_, index) => index * step);
}

const QUARTERS = [0, 0.25, 0.5, 0.75, 1].map((value) => [value, String(value)]);
const percent = (share) => `${Math.round(share * 1000) / 10}%`;

function histogram(caption, found, theory) {
  const shares = found.histogram.map((number) => number / Math.max(found.count, 1));
  const yMax = Math.max(...shares, ...(theory ? theory.histogram : []), 0.01) * 1.05;
  const note = `mean ${fixed(found.mean, 3)}` + (theory ? `, evenly spread ${fixed(theory.mean, 3)}` : "");
  const options = { xs: QUARTERS, ys: niceTicks(yMax), xLabel: "decentrality", yLabel: "share of queries", yMax, format: percent };
  const { figure, svg, x, y } = frame(caption, note, options);
  shares.forEach((share, index) => {
    const bar = draw("rect", { class: "bar", x: x(index / 20) + 0.5, width: x(0.05) - x(0) - 1, y: y(share), height: y(0) - y(share) });
    bar.append(draw("title", {}, `${(index / 20).toFixed(2)} to ${((index + 1) / 20).toFixed(2)}: ${count(found.histogram[index])} (${percent(share)})`));
    svg.append(bar);
  });
  if (theory) {
    const steps = theory.histogram.map((share, index) => `V${y(share)}H${x((index + 1) / 20)}`);
    svg.append(draw("path", { class: "theory", d: `M${x(0)} ${y(0)}${steps.join("")}V${y(0)}` }));
  }
  return figure;
}

function cumulative(caption, found, theory, covering) {
  const options = { xs: QUARTERS, ys: [0, 0.25, 0.5, 0.75, 1], xLabel: "decentrality", yLabel: "share at or below", format: percent };
  const note = `median ${fixed(found.median, 3)}, 90% below ${fixed(found.p90, 3)}` + (covering ? "; dotted: all covering pairs" : "");
  const { figure, svg, x, y } = frame(caption, note, options);
  const path = (shares) => "M" + shares.map((share, index) => `${x(index / 100).toFixed(1)} ${y(share).toFixed(1)}`).join("L");
  if (covering) svg.append(draw("path", { class: "covering", d: path(covering.ecdf) }));
  if (found.ecdf.length) svg.append(draw("path", { class: "line", d: path(found.ecdf) }));
  if (theory) svg.append(draw("path", { class: "theory dashed", d: path(theory.ecdf) }));
  return figure;
}

// Few queries in many bins show noise: bins are put together until one holds 4 on average.
function density(bins) {
  const total = bins.flat().reduce((sum, number) => sum + number, 0);
  const factor = [1, 2, 4].find((size) => total >= 4 * (bins.length / size) ** 2) || 4;
  const side = bins.length / factor;
  const cells = Array.from({ length: side }, () => new Array(side).fill(0));
  bins.forEach((row, v) => row.forEach((number, u) => { cells[Math.floor(v / factor)][Math.floor(u / factor)] += number; }));
  const most = Math.max(...cells.flat(), 1);
  const [left, top, size] = [78, 6, 150];
  const svg = draw("svg", { viewBox: "0 0 340 190", role: "img", "aria-label": "Density of queries inside their positive" });
  cells.forEach((row, v) => row.forEach((number, u) => {
    const cell = draw("rect", { x: left + (u * size) / side, y: top + (v * size) / side, width: size / side + 0.3, height: size / side + 0.3, fill: viridis(number / most) });
    cell.append(draw("title", {}, `${count(number)} queries, ${fixed((number / Math.max(total, 1)) * side * side, 2)} times even`));
    svg.append(cell);
  }));
  svg.append(draw("text", { x: left + size / 2, y: 170, "text-anchor": "middle" }, "west to east, north up"));
  for (let step = 0; step < 30; step++) {
    svg.append(draw("rect", { x: left + size + 18, y: top + size - (step + 1) * 5, width: 10, height: 5.3, fill: viridis((step + 0.5) / 30) }));
  }
  const relative = (most / Math.max(total, 1)) * side * side;
  for (const share of [0, 0.5, 1]) {
    svg.append(draw("text", { x: left + size + 32, y: top + size * (1 - share) + (share === 1 ? 9 : share ? 4 : 0) }, `${fixed(share * relative, 1)}×`));
  }
  return make("figure", { class: "chart" }, make("figcaption", {}, "Place in the positive", make("small", {}, "density; 1× is an even spread")), svg);
}

function perReference(rows) {
  const most = Math.max(...rows.map((row) => row.references), 1) * 1.05;
  const options = {
    xs: rows.map((row, index) => [index + 0.5, row.queries]), ys: niceTicks(most), xLabel: "queries of a reference", yLabel: "references",
    xMax: Math.max(rows.length, 1), yMax: most, format: short,
  };
  const { figure, svg, x, y } = frame("Queries per reference", "those of none are distractors", options);
  rows.forEach((row, index) => {
    const kind = row.queries === "0" ? "bar none" : "bar";
    const bar = draw("rect", { class: kind, x: x(index + 0.1), width: x(0.8) - x(0), y: y(row.references), height: y(0) - y(row.references) });
    bar.append(draw("title", {}, `${count(row.references)} references with ${row.queries} queries`));
    svg.append(bar);
  });
  return figure;
}

const labelOf = (group) => (group.kind === "all" ? "all queries" : `${group.kind} ${group.name || "(no name)"}`);

function showGroup(group) {
  const theory = group.theory ? data.theory[group.theory] : null;
  byId("charts").replaceChildren(
    histogram("Decentrality (max norm)", group.decentrality, theory && theory.decentrality),
    cumulative("Cumulative (max norm)", group.decentrality, theory && theory.decentrality, group.covering),
    histogram("Decentrality (Euclidean)", group.decentrality_l2, theory && theory.decentrality_l2),
    cumulative("Cumulative (Euclidean)", group.decentrality_l2, theory && theory.decentrality_l2, null),
    density(group.density),
    perReference(group.per_reference),
  );
}

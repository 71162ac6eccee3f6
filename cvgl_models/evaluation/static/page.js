
// Green, yellow, red by error, as in the precision maps of CV-Cities; grey where nothing was found.
const RAMP = ["#1a9641", "#a6d96a", "#ffdf6e", "#fdae61", "#d7191c"];
const NOTHING = "#7a7f85";

function shadeOfError(meters) {
  if (meters === null) return NOTHING;
  const at = Math.min(meters / data.ramp_end_m, 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  const parts = [1, 3, 5].map((start) => {
    const [a, b] = [low, low + 1].map((index) => parseInt(RAMP[index].slice(start, start + 2), 16));
    return Math.round(a + (b - a) * (at - low));
  });
  return `rgb(${parts.join(",")})`;
}

const inMeters = (meters) => (meters === null ? "nothing found" : meters >= 10000 ? `${count(Math.round(meters / 1000))} km` : `${count(Math.round(meters))} m`);

// The map: no tiles, so a plain ground with a scale.
const queries = data.map;
const map = L.map("map", { preferCanvas: true, scrollWheelZoom: false, attributionControl: false, zoomSnap: 0.25 });
map.on("click", () => map.scrollWheelZoom.enable());
L.control.scale({ imperial: false }).addTo(map);
const dots = queries.id.map((id, row) => {
  const dot = L.circleMarker([queries.lat[row], queries.lon[row]], { radius: 4.5, weight: 0.8, color: "#0006", fillColor: shadeOfError(queries.error_m[row]), fillOpacity: 0.95 });
  dot.on("click", () => select(row, false));
  return dot.addTo(map);
});
const rowOf = new Map(queries.id.map((id, row) => [id, row]));
let line = null;

function select(row, isFar) {
  if (line) line.remove();
  line = null;
  const here = [queries.lat[row], queries.lon[row]];
  if (queries.top_lat[row] !== null) {
    const there = [queries.top_lat[row], queries.top_lon[row]];
    line = L.layerGroup([
      L.polyline([here, there], { color: "#0072b2", weight: 2, dashArray: "5 4" }),
      L.circleMarker(there, { radius: 6, color: "#0072b2", weight: 2, fill: false }),
    ]).addTo(map);
    if (isFar) map.fitBounds(L.latLngBounds([here, there]).pad(0.4), { animate: false, maxZoom: 18 });
  }
  const rows = [["error", inMeters(queries.error_m[row])], ["rank of positive", count(queries.rank[row])], ["top-1 covers it", queries.covers[row] ? "yes" : "no"]];
  const list = make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  dots[row].unbindPopup().bindPopup(make("div", { class: "popup" }, make("h3", {}, queries.id[row]), list), { autoPan: true }).openPopup();
}

if (queries.id.length) {
  map.fitBounds(L.latLngBounds(queries.id.map((id, row) => [queries.lat[row], queries.lon[row]])).pad(0.05), { animate: false, maxZoom: 19, paddingBottomRight: [0, 96] }); // the legend hides no dot
  const ramp = make("div", { class: "ramp", style: `background: linear-gradient(90deg, ${RAMP.join(", ")})` });
  byId("legend").append(make("b", {}, "error of the top-1"), ramp, make("div", { class: "ends" }, make("span", {}, "0"), make("span", {}, `${data.ramp_end_m} m and more`)));
} else {
  map.setView([0, 0], 1);
}

// Curves.
const SHARES = [0, 0.25, 0.5, 0.75, 1];
const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

function errorCurve(caption, most, step) {
  const points = data.error_curve.filter(([limit, share]) => limit <= most && share !== null);
  const xs = Array.from({ length: most / step + 1 }, (_, index) => [index * step, count(index * step)]);
  const { figure, svg, x, y } = frame(caption, "share of queries whose error is at most so many metres", { xs, ys: SHARES, xLabel: "metres", yLabel: "share of queries", xMax: most, format: percent });
  if (points.length) svg.append(draw("path", { class: "line", d: path(points.map(([limit, share]) => [x(limit), y(share)])) }));
  for (const [limit, share] of points.filter(([value]) => [25, 50, 100, 150].includes(value))) {
    const dot = draw("circle", { class: "bar", cx: x(limit), cy: y(share), r: 3 });
    dot.append(draw("title", {}, `${percent(share)} within ${limit} m`));
    svg.append(dot);
  }
  return figure;
}

function recallCurve() {
  const points = data.recall_curve.filter(([, share]) => share !== null);
  const last = points.length ? points[points.length - 1][0] : 1;
  const at = (k) => (last > 1 ? Math.log(k) / Math.log(last) : 0.5);
  const xs = [1, 2, 5, 10, 20, 50, 100].filter((k) => k <= last).map((k) => [at(k), String(k)]);
  const { figure, svg, x, y } = frame("Recall", "share of queries whose positive is among the first k", { xs, ys: SHARES, xLabel: "k", yLabel: "recall@k", format: percent });
  if (points.length) svg.append(draw("path", { class: "line", d: path(points.map(([k, share]) => [x(at(k)), y(share)])) }));
  for (const [k, share] of points) {
    const dot = draw("circle", { class: "bar", cx: x(at(k)), cy: y(share), r: 3 });
    dot.append(draw("title", {}, `recall@${k} ${percent(share)}`));
    svg.append(dot);
  }
  return figure;
}

function reliabilityChart({ error, bins }) {
  const xs = SHARES.map((share) => [share, percent(share)]);
  const note = `calibration error ${percent(error)}; on the diagonal confidences are right`;
  const { figure, svg, x, y } = frame("Confidence", note, { xs, ys: SHARES, xLabel: "confidence", yLabel: "top-1 covers", format: percent });
  svg.append(draw("path", { class: "theory dashed", d: path([[x(0), y(0)], [x(1), y(1)]]) }));
  svg.append(draw("path", { class: "line", d: path(bins.map(([mean, share]) => [x(mean), y(share)])) }));
  for (const [mean, share, number] of bins) {
    const dot = draw("circle", { class: "bar", cx: x(mean), cy: y(share), r: 3 });
    dot.append(draw("title", {}, `${count(number)} queries: confidence ${percent(mean)}, right ${percent(share)}`));
    svg.append(dot);
  }
  return figure;
}

byId("charts-of-evaluation").append(errorCurve("Error, near", 300, 50), errorCurve("Error, far", 2000, 500), recallCurve());
if (data.reliability) byId("charts-of-evaluation").append(reliabilityChart(data.reliability));

// Failures.
const picture = (uri, text) => (uri ? make("img", { src: uri, alt: text, loading: "lazy" }) : null);
for (const failure of data.failures) {
  const text = make("div", { class: "text" }, make("b", {}, failure.id), `error ${inMeters(failure.error_m)}, positive at rank ${count(failure.rank)}`);
  const query = make("button", { type: "button" }, picture(failure.image, "the query"), text);
  query.addEventListener("click", () => {
    byId("map-title").scrollIntoView();
    if (rowOf.has(failure.id)) select(rowOf.get(failure.id), true);
  });
  const references = failure.references.map((reference, place) => {
    const kind = place === 0 ? "positive" : reference.covers ? "covers" : "misses";
    const score = reference.score === null ? "" : `, score ${reference.score.toFixed(3)}`;
    const name = place === 0 ? "positive" : `${place}.`;
    return make("figure", { title: reference.id }, make("div", { class: `frame ${kind}` }, picture(reference.image, reference.id)), make("b", {}, name), ` ${inMeters(reference.away_m)} away${score}`);
  });
  byId("failures").append(make("div", { class: "failure" }, query, make("div", { class: "found" }, ...references)));
}

window.cvglEvaluation = { map, select, shadeOfError, queries };

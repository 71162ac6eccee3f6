function picture(id, kind, alt) {
  const uri = thumbnails.get(id);
  if (uri) return make("img", { src: uri, alt });
  const cut = uri === undefined && kind === "reference" && rowOfReference.has(id) ? cutOut(rowOfReference.get(id), alt) : null;
  if (cut) return cut;
  const why = uri === "" ? "no picture: it is missing or cannot be decoded" : `no picture: ${count(data.num_shown)} of ${count(data.num_pairs)} queries on the map have theirs in this page`;
  return make("span", { class: "missing" }, why);
}

// A reference without a thumbnail, cut out of its area's mosaic where that is sharp enough.
function cutOut(row, alt) {
  const area = data.map.areas.find((one) => one.name === nameOf(references.area, row));
  if (!area || !area.is_sharp) return null;
  const canvas = make("canvas", { width: 128, height: 128, role: "img", "aria-label": `${alt}, cut out of the map` });
  const [west, north, east, south] = area.mosaic_edges;
  area.image.decode().then(() => {
    const [wide, high] = [area.image.naturalWidth / (east - west), area.image.naturalHeight / (south - north)];
    const side = references.side[row];
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(area.image, (references.x[row] - west) * wide, (references.y[row] - north) * high, side * wide, side * high, 0, 0, 128, 128);
  });
  return canvas;
}

function pairOf(row) {
  const reference = queries.positive[row];
  const query = make("figure", { class: "of-query" }, picture(queries.id[row], "query", "query"));
  if (reference < 0) return make("div", { class: "pair" }, query);
  const spot = make("span", { class: "spot" });
  spot.style.left = `${queries.u[row] * 100}%`;
  spot.style.top = `${queries.v[row] * 100}%`;
  const positive = make("figure", { class: "of-reference" }, picture(references.id[reference], "reference", "its positive"));
  if (!positive.querySelector(".missing")) positive.append(spot);
  return make("div", { class: "pair" }, query, positive);
}

const several = (number, one, more) => `${count(number)} ${number === 1 ? one : more}`;

function facts(rows) {
  const list = make("dl", {});
  for (const [name, value] of rows) if (value !== "" && value !== null) list.append(make("dt", {}, name), make("dd", {}, value));
  return list;
}

function queryPopup(row) {
  const reference = queries.positive[row];
  const heading = queries.heading_deg[row];
  return make("div", { class: "popup" },
    make("h3", {}, queries.id[row]),
    pairOf(row),
    facts([
      ["decentrality", reference < 0 ? "" : `${fixed(queries.decentrality[row], 3)} (Euclidean ${fixed(queries.decentrality_l2[row], 3)})`],
      ["distance", reference < 0 ? "" : `${fixed(queries.distance_m[row], 1)} m`],
      ["split", nameOf(queries.split, row)],
      ["area", nameOf(queries.area, row)],
      ["captured", nameOf(queries.captured, row) || "unknown"],
      ["heading", heading === null ? "unknown" : `${heading}°`],
      ["source", nameOf(queries.source, row)],
      ["licence", nameOf(queries.licence, row) || "unknown"],
      ["creator", nameOf(queries.creator, row)],
      ["positive", reference < 0 ? "none covers it" : references.id[reference]],
      ["its date", reference < 0 ? "" : nameOf(references.captured, reference) || "unknown"],
      ["covered by", several(queries.covering[row], "reference", "references")],
    ]));
}

function referencePopup(row) {
  const shown = picture(references.id[row], "reference", "reference");
  const image = make("div", { class: "pair" }, make("figure", { class: "of-reference" }, shown));
  image.style.width = "160px";
  return make("div", { class: "popup" },
    make("h3", {}, references.id[row]),
    shown.className === "missing" ? null : image,
    facts([
      ["positive of", several(references.queries[row], "query", "queries")],
      ["area", nameOf(references.area, row)],
      ["captured", nameOf(references.captured, row) || "unknown"],
      ["source", nameOf(references.source, row)],
      ["licence", nameOf(references.licence, row) || "unknown"],
      ["status", nameOf(references.status, row)],
    ]));
}

let popup = null;

function open(content, at) {
  if (popup) map.closePopup(popup);
  popup = L.popup({ maxWidth: 320, minWidth: 220, autoPanPadding: [16, 16] }).setLatLng(at).setContent(content);
  popup.openOn(map);
}

function selectQuery(row) {
  open(queryPopup(row), latLng(queries.x[row], queries.y[row]));
  view.selected = row;
  view.reference = queries.positive[row];
  points.redraw();
}

function selectReference(row, at) {
  if (row < 0) return;
  open(referencePopup(row), at);
  view.selected = -1;
  view.reference = row;
  points.redraw();
}

// Bring a query into view, close enough to see its window.
function goToQuery(row) {
  const reference = queries.positive[row];
  const side = reference < 0 ? 3e-6 : references.side[reference];
  const closest = Math.log2(180 / (256 * side));
  map.setView(latLng(queries.x[row], queries.y[row]), Math.min(Math.max(map.getZoom(), Math.round(closest * 2) / 2), 22), { animate: false });
  selectQuery(row);
  byId("map").scrollIntoView({ block: "center" });
}

function legend() {
  const parts = [];
  if (view.color === "decentrality") {
    const ramp = make("div", { class: "ramp" });
    ramp.style.background = `linear-gradient(to right, ${VIRIDIS.join(",")})`;
    parts.push(make("b", {}, "query: decentrality"), ramp, make("div", { class: "ends" }, make("span", {}, "0 centre"), make("span", {}, "1 edge")));
  } else if (view.color === "split") {
    parts.push(make("b", {}, "query: split"));
    for (const [name, color] of Object.entries(SPLITS)) if (queries.split.names.includes(name)) parts.push(key(name, color, ""));
  }
  if (view.squares === "count") {
    parts.push(make("b", {}, blocks ? "reference: queries, on average" : "reference: queries"));
    ["0", "1", "2", "3–4", "5–8", "9+"].forEach((name, index) => parts.push(key(name, SHADES[index][1], "square")));
  }
  byId("legend").replaceChildren(...parts);
}

function key(name, color, shape) {
  const mark = make("i", { class: shape });
  mark.style.background = color;
  return make("span", { class: "key" }, mark, name);
}

function setUpControls() {
  for (const name of ["color", "squares"]) {
    for (const input of document.getElementsByName(name)) {
      input.addEventListener("change", () => { view[name] = input.value; legend(); points.recolor(); });
    }
  }
  byId("imagery").addEventListener("change", (event) => (event.target.checked ? mosaics.addTo(map) : mosaics.remove()));
  if (!data.map.areas.some((area) => area.mosaic)) byId("imagery").closest("fieldset").remove();
  data.map.areas.forEach((area, index) => byId("area").append(make("option", { value: index }, area.name || "(no name)")));
  byId("area").addEventListener("change", (event) => goToArea(Number(event.target.value)));
  byId("find").addEventListener("change", (event) => {
    const wanted = event.target.value.trim();
    const row = rowOfQuery.get(wanted);
    byId("message").textContent = !wanted || row !== undefined ? "" : `No query '${wanted}' is drawn.`;
    if (row !== undefined) goToQuery(row);
  });
  data.groups.forEach((group, index) => byId("group").append(make("option", { value: index }, labelOf(group))));
  byId("group").addEventListener("change", (event) => showGroup(data.groups[Number(event.target.value)]));
}

function card(content, title, note, action) {
  const text = make("span", { class: "text" }, make("b", {}, title), note);
  const node = make(action ? "button" : "div", action ? { type: "button" } : {}, content, text);
  if (action) node.addEventListener("click", action);
  return node;
}

function setUpSheets() {
  for (const id of data.samples) {
    const row = rowOfQuery.get(id);
    const parts = [nameOf(queries.split, row), nameOf(queries.area, row), nameOf(queries.captured, row), `decentrality ${fixed(queries.decentrality[row], 2)}`, `${fixed(queries.distance_m[row], 0)} m`];
    byId("random").append(card(pairOf(row), id, parts.filter(Boolean).join(" · "), () => goToQuery(row)));
  }
  for (const item of data.worst) {
    const figure = make("figure", { class: item.kind === "query" ? "of-query" : "of-reference" }, picture(item.id, item.kind, item.kind));
    const note = [(item.reason || "").split(",").join(", "), item.area, item.keep === false ? "left out" : "kept"].filter(Boolean).join(" · ");
    const row = item.kind === "query" ? rowOfQuery.get(item.id) : undefined;
    byId("worst").append(card(make("div", { class: "pair" }, figure), item.id, note, row === undefined ? null : () => goToQuery(row)));
  }
}

setUpMap();
setUpControls();
legend();
showGroup(data.groups[0]);
setUpSheets();
// For tests and for the curious.
window.cvglReport = { map, view, queries, references, selectQuery, goToQuery };

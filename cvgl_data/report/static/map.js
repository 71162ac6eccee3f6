// World units: x east, y south, 1 the side of the Web-Mercator square.
const latLng = (x, y) => [(Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI, x * 360 - 180];
const SPLITS = { train: "#0072b2", validation: "#e69f00", test: "#d55e00" };
const SHADES = [[0, "#ffffff"], [1, "#fee8c8"], [2, "#fdbb84"], [3, "#fc8d59"], [5, "#d7301f"], [9, "#7f0000"]];
const UNKNOWN = "#9aa0a6";
const STEPS = 24;

const queries = data.map.queries;
const references = data.map.references;
const blocks = data.map.blocks;
const thumbnails = new Map(data.thumbnails);
const nameOf = (column, index) => column.names[column.codes[index]];
const rowOfQuery = new Map(queries.id.map((id, row) => [id, row]));
const rowOfReference = new Map(references.id.map((id, row) => [id, row]));
const view = { color: "decentrality", squares: "outline", selected: -1, reference: -1 };

function shadeOf(number) {
  return SHADES.reduce((found, [from, shade]) => (number >= from ? shade : found), SHADES[0][1]);
}

// Dots by color once per setting, so that one path is filled for each color.
function dotsByColor() {
  const groups = new Map();
  queries.x.forEach((_, row) => {
    let color = UNKNOWN;
    if (view.color === "split") color = SPLITS[nameOf(queries.split, row)] || UNKNOWN;
    else if (queries.decentrality[row] !== null) color = viridis(Math.round(queries.decentrality[row] * STEPS) / STEPS);
    if (!groups.has(color)) groups.set(color, []);
    groups.get(color).push(row);
  });
  return groups;
}

const PointLayer = L.Layer.extend({
  onAdd(map) {
    this._canvas = L.DomUtil.create("canvas", "", map.getPanes().overlayPane);
    this._canvas.style.pointerEvents = "none";
    this.recolor();
  },
  getEvents() {
    return { move: this.redraw, zoom: this.redraw, viewreset: this.redraw, resize: this.redraw };
  },
  recolor() {
    this._groups = dotsByColor();
    this.redraw();
  },
  redraw() {
    if (this._asked) return;
    this._asked = requestAnimationFrame(() => { this._asked = 0; this._draw(); });
  },
  _draw() {
    const map = this._map;
    const size = map.getSize();
    const ratio = window.devicePixelRatio || 1;
    L.DomUtil.setPosition(this._canvas, map.containerPointToLayerPoint([0, 0]));
    this._canvas.width = size.x * ratio;
    this._canvas.height = size.y * ratio;
    this._canvas.style.width = `${size.x}px`;
    this._canvas.style.height = `${size.y}px`;
    const context = this._canvas.getContext("2d");
    context.scale(ratio, ratio);
    const origin = map.getPixelBounds().min;
    const scale = 256 * 2 ** map.getZoom();
    const at = { context, size, x: (value) => value * scale - origin.x, y: (value) => value * scale - origin.y, scale };
    if (view.squares !== "none") this._squares(at);
    if (view.color !== "none") this._dots(at);
    this._selection(at);
  },
  _squares({ context, size, x, y, scale }) {
    const shown = blocks || references;
    const outline = view.squares === "outline";
    context.lineWidth = 1;
    for (let row = 0; row < shown.x.length; row++) {
      const side = (blocks ? blocks.side : references.side[row]) * scale;
      const [left, top] = [x(shown.x[row]), y(shown.y[row])];
      if (left > size.x || top > size.y || left + side < 0 || top + side < 0) continue;
      if (outline) {
        if (side < 4) continue;
        context.strokeStyle = "rgba(255,255,255,.45)";
        context.strokeRect(left, top, side, side);
        context.strokeStyle = "rgba(0,0,0,.28)";
        context.strokeRect(left + 1, top + 1, side - 2, side - 2);
      } else {
        const number = blocks ? Math.round(shown.queries[row] / shown.references[row]) : shown.queries[row];
        context.globalAlpha = 0.72;
        context.fillStyle = shadeOf(number);
        context.fillRect(left, top, Math.max(side, 1), Math.max(side, 1));
        context.globalAlpha = 1;
      }
    }
  },
  _dots({ context, size, x, y, scale }) {
    const radius = queries.x.length > 5000 ? Math.min(Math.max(scale / 2 ** 22.5, 1.3), 5) : Math.min(Math.max(scale / 2 ** 22, 3), 6);
    context.lineWidth = radius > 2 ? 1 : 0.4;
    context.strokeStyle = "rgba(255,255,255,.9)";
    for (const [color, rows] of this._groups) {
      context.beginPath();
      for (const row of rows) {
        const [left, top] = [x(queries.x[row]), y(queries.y[row])];
        if (left < -9 || top < -9 || left > size.x + 9 || top > size.y + 9) continue;
        context.moveTo(left + radius, top);
        context.arc(left, top, radius, 0, 7);
      }
      context.fillStyle = color;
      context.fill();
      context.stroke();
    }
  },
  _selection({ context, x, y, scale }) {
    const reference = view.reference;
    if (reference >= 0) {
      const side = references.side[reference] * scale;
      const [left, top] = [x(references.x[reference]), y(references.y[reference])];
      for (const [color, width] of [["#fff", 5], ["#d55e00", 2.5]]) {
        context.strokeStyle = color;
        context.lineWidth = width;
        context.strokeRect(left, top, side, side);
        if (view.selected < 0) continue;
        context.beginPath();
        context.moveTo(x(queries.x[view.selected]), y(queries.y[view.selected]));
        context.lineTo(left + side / 2, top + side / 2);
        context.stroke();
      }
      context.fillStyle = "#d55e00";
      context.fillRect(left + side / 2 - 3.5, top + side / 2 - 3.5, 7, 7);
    }
    if (view.selected >= 0) {
      context.beginPath();
      context.arc(x(queries.x[view.selected]), y(queries.y[view.selected]), 7, 0, 7);
      context.fillStyle = "#d55e00";
      context.strokeStyle = "#fff";
      context.lineWidth = 2;
      context.fill();
      context.stroke();
    }
  },
});

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const map = L.map("map", {
  inertia: !still, fadeAnimation: !still,
  attributionControl: false, zoomControl: false, zoomSnap: 0.25, minZoom: 1, maxZoom: 22,
  zoomAnimation: false, preferCanvas: true, worldCopyJump: false, scrollWheelZoom: false,
});
const points = new PointLayer();
const mosaics = L.layerGroup();
const boundsOf = (area) => {
  const [west, north, east, south] = area.edges;
  return L.latLngBounds(latLng(west, south), latLng(east, north));
};

function setUpMap() {
  map.createPane("outlines").style.zIndex = 350;
  const outlines = L.canvas({ pane: "outlines", padding: 0.3 });
  for (const area of data.map.areas) {
    if (area.mosaic) {
      const [west, north, east, south] = area.mosaic_edges;
      area.image = make("img", { src: area.mosaic, alt: "" });
      L.imageOverlay(area.image, [latLng(west, south), latLng(east, north)], { pane: "tilePane" }).addTo(mosaics);
    }
    const style = { color: "#009e73", weight: 2, fill: false, interactive: false, renderer: outlines };
    if (area.is_hull) style.dashArray = "5 5";
    for (const polygon of area.outline) L.polygon(polygon, style).addTo(map);
  }
  mosaics.addTo(map);
  points.addTo(map);
  L.control.scale({ imperial: false }).addTo(map);
  L.control.zoom({ position: "bottomleft" }).addTo(map); // where no popup opens
  goToArea(0);
  map.on("click", (event) => {
    const row = nearestQuery(event.containerPoint);
    if (row >= 0) selectQuery(row);
    else selectReference(referenceAt(event.containerPoint), event.latlng);
  });
  // The wheel scrolls the page until the map is in use.
  map.on("focus", () => map.scrollWheelZoom.enable());
  map.on("blur", () => map.scrollWheelZoom.disable());
  map.on("popupclose", () => { view.selected = -1; view.reference = -1; points.redraw(); });
}

function goToArea(index) {
  const area = data.map.areas[index];
  if (area) map.fitBounds(boundsOf(area), { animate: false, padding: [12, 12] });
  else map.setView([0, 0], 2);
}

function worldOf(point) {
  const origin = map.getPixelBounds().min;
  const scale = 256 * 2 ** map.getZoom();
  return { x: (point.x + origin.x) / scale, y: (point.y + origin.y) / scale, scale };
}

function nearestQuery(point) {
  if (view.color === "none") return -1;
  const { x, y, scale } = worldOf(point);
  let [best, least] = [-1, (10 / scale) ** 2];
  for (let row = 0; row < queries.x.length; row++) {
    const away = (queries.x[row] - x) ** 2 + (queries.y[row] - y) ** 2;
    if (away < least) [best, least] = [row, away];
  }
  return best;
}

// The one whose centre is nearest, of those that cover the place.
function referenceAt(point) {
  if (blocks || view.squares === "none") return -1;
  const { x, y } = worldOf(point);
  let [best, least] = [-1, Infinity];
  for (let row = 0; row < references.x.length; row++) {
    const half = references.side[row] / 2;
    const away = Math.max(Math.abs(references.x[row] + half - x), Math.abs(references.y[row] + half - y));
    if (away <= half && away < least) [best, least] = [row, away];
  }
  return best;
}

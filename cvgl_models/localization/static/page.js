
const SHARES = [0, 0.25, 0.5, 0.75, 1];
const path = (points) => "M" + points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");

function errorCurve(most, step) {
  const xs = Array.from({ length: most / step + 1 }, (_, index) => [index * step, String(index * step)]);
  const note = "share of pairs whose error is below so many metres; dashed: predicting the centre";
  const { figure, svg, x, y } = frame(`Error, up to ${most} m`, note, { xs, ys: SHARES, xLabel: "metres", yLabel: "share of pairs", xMax: most, format: percent });
  for (const [curve, kind] of [[data.center_curve, "theory dashed"], [data.error_curve, "line"]]) {
    const points = curve.filter(([limit, share]) => limit <= most && share !== null);
    if (points.length) svg.append(draw("path", { class: kind, d: path(points.map(([limit, share]) => [x(limit), y(share)])) }));
  }
  return figure;
}

// Where the found places lie about the true ones: off the cross as a whole is a bias.
function errorVectors() {
  const most = data.vectors_to_m;
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => [part, String(Math.round((2 * part - 1) * most * 10) / 10)]);
  const rows = ticks.map(([part]) => part);
  const note = `found minus true place, metres; mean ${fixed(data.mean_vector[0], 2)} east, ${fixed(data.mean_vector[1], 2)} north`;
  const { figure, svg, x, y } = frame("Error vectors", note, { xs: ticks, ys: rows, xLabel: "east", yLabel: "north", format: (part) => String(Math.round((2 * part - 1) * most * 10) / 10), height: 340 });
  const at = (value) => 0.5 + value / most / 2;
  svg.append(draw("line", { class: "axis", x1: x(0.5), x2: x(0.5), y1: y(0), y2: y(1) }));
  svg.append(draw("line", { class: "axis", x1: x(0), x2: x(1), y1: y(0.5), y2: y(0.5) }));
  for (const [east, north] of data.vectors) {
    if (Math.abs(east) <= most && Math.abs(north) <= most) svg.append(draw("circle", { class: "dot", cx: x(at(east)), cy: y(at(north)), r: 1.8 }));
  }
  return figure;
}

byId("charts-of-localization").append(errorCurve(10, 2), errorCurve(50, 10), errorVectors());
window.cvglLocalization = { data };

// What the canvas shows: clouds where there is a crowd, marks where there are few.
import { KINDS, shape } from "./dom.js";

const LEVELS = 9; // contour bands of a cloud
const FAINTEST = 0.03; // share of the densest cell below which a band ends

/** Colours of the style sheet as they are now. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries([...KINDS, "card", "ink"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/**
 * Bands of equal steps in the logarithm of the count, per modality, as Path2D in units of the view's own square.
 * Counts of neighbouring cells are averaged first: a cloud, not a chessboard.
 */
export function clouds(view) {
  const { cells, counts } = view;
  const contours = d3.contours().size([cells + 2, cells + 2]).smooth(true);
  return KINDS.filter((kind) => counts[kind]).map((kind) => {
    const padded = d3.blur2({ data: pad(counts[kind], cells), width: cells + 2, height: cells + 2 }, 0.7).data;
    const most = d3.max(padded);
    const lowest = Math.max(0.25, most * FAINTEST);
    const steps = d3.range(LEVELS).map((step) => lowest * (most / lowest) ** (step / LEVELS));
    const bands = contours.thresholds(steps)(padded).map((band) => ring(band.coordinates, cells));
    return { kind, bands };
  });
}

/** Clouds close at the edge of the view: a border of the nearest cells, then nothing beyond. */
function pad(counts, cells) {
  const side = cells + 2;
  const padded = new Float32Array(side * side);
  const inside = (index) => Math.min(cells - 1, Math.max(0, index - 1));
  for (let row = 0; row < side; row += 1) {
    for (let column = 0; column < side; column += 1) padded[row * side + column] = counts[inside(row) * cells + inside(column)];
  }
  return padded;
}

function ring(polygons, cells) {
  const path = new Path2D();
  for (const polygon of polygons) {
    for (const points of polygon) {
      points.forEach(([x, y], index) => path[index ? "lineTo" : "moveTo"]((x - 1) / cells, (y - 1) / cells));
      path.closePath();
    }
  }
  return path;
}

/** Draw clouds; x and y are the scales of the plane as it is shown. */
export function paintClouds(context, view, painted, x, y, palette, dark) {
  context.save();
  const [left, right] = view.valence.map(x);
  const [bottom, top] = view.arousal.map(y);
  context.beginPath();
  context.rect(left, top, right - left, bottom - top);
  context.clip();
  context.globalCompositeOperation = dark ? "screen" : "multiply";
  context.translate(left, bottom);
  context.scale(right - left, top - bottom);
  for (const { kind, bands } of painted) {
    context.fillStyle = palette[kind];
    bands.forEach((band, step) => {
      context.globalAlpha = dark ? 0.07 + 0.012 * step : 0.06 + 0.011 * step;
      context.fill(band, "evenodd");
    });
  }
  context.restore();
}

/** Draw marks, small modalities on top. */
export function paintMarks(context, points, x, y, palette, hidden) {
  const number = points.id.length;
  const area = number > 1500 ? 34 : number > 300 ? 52 : 78;
  const order = d3.sort(KINDS, (kind) => -d3.sum(points.modality, (other) => other === kind));
  context.lineWidth = number > 1500 ? 0.6 : 1;
  context.strokeStyle = palette.card;
  for (const kind of order) {
    if (hidden.has(kind)) continue;
    const path = new Path2D(shape(kind, area));
    context.fillStyle = palette[kind];
    for (let index = 0; index < number; index += 1) {
      if (points.modality[index] !== kind) continue;
      context.save();
      context.translate(x(points.valence[index]), y(points.arousal[index]));
      context.globalAlpha = 0.8;
      context.fill(path);
      context.globalAlpha = 1;
      context.stroke(path);
      context.restore();
    }
  }
}

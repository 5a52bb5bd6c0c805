// What the canvas shows: a cloud where there is a crowd, marks where there are few.
import { KINDS, shape } from "./dom.js";

const MOST_ALPHA = 0.78;
const OUTLINED = 0.5; // a line runs around the densest places that hold this share of a modality's items
const OUTLINED_BELOW = 2.5; // magnification; closer by, lines would only follow chance

/** Colours of the style sheet as they are now. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries([...KINDS, "card", "ink"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/**
 * A crowd as a picture of one pixel a cell: more items, more colour; the hue is the mean of the modalities there. The
 * fewer items a cell has, the wider they are smoothed, so that what shows is the crowd and not chance.
 */
export function cloud(view, palette) {
  const { cells, counts, total } = view;
  const radius = Math.min(5, 0.6 + Math.sqrt((8 * cells * cells) / total));
  const smooth = Object.entries(counts).map(([kind, count]) => ({ kind, data: blurred(count, cells, radius) }));
  const sum = new Float32Array(cells * cells);
  for (const { data } of smooth) data.forEach((value, index) => (sum[index] += value));
  const most = d3.max(sum);
  const canvas = Object.assign(document.createElement("canvas"), { width: cells, height: cells });
  const image = canvas.getContext("2d").createImageData(cells, cells);
  const hues = smooth.map(({ kind }) => d3.rgb(palette[kind]));
  for (let index = 0; index < sum.length; index += 1) {
    const at = 4 * ((cells - 1 - Math.floor(index / cells)) * cells + (index % cells)); // pictures begin at the top
    smooth.forEach(({ data }, which) => {
      const share = sum[index] > 0 ? data[index] / sum[index] : 1 / smooth.length;
      image.data[at] += share * hues[which].r;
      image.data[at + 1] += share * hues[which].g;
      image.data[at + 2] += share * hues[which].b;
    });
    image.data[at + 3] = 255 * MOST_ALPHA * (sum[index] / most) ** 0.55;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return { canvas, lines: smooth.map(({ kind, data }) => ({ kind, path: outline(data, cells) })) };
}

/** Whether lines are drawn at the magnification of a scale. */
export const outlined = (x) => x(1) - x(0) < OUTLINED_BELOW * (x.range()[1] - x.range()[0]);

function blurred(counts, cells, radius) {
  return d3.blur2({ data: Float32Array.from(counts), width: cells, height: cells }, radius).data;
}

/** The line around the densest cells that hold OUTLINED of the items, in cells from the corner of the view. */
function outline(data, cells) {
  const sorted = Float32Array.from(data).sort().reverse();
  const whole = d3.sum(sorted);
  let held = 0;
  const level = sorted[sorted.findIndex((value) => (held += value) >= OUTLINED * whole)];
  return new Path2D(d3.geoPath()(d3.contours().size([cells, cells]).contour(data, level)) ?? "");
}

/** Draw a crowd; x and y are the scales of the plane as it is shown. */
export function paintCloud(context, view, { canvas, lines }, x, y, palette) {
  const [left, right] = view.valence.map(x);
  const [bottom, top] = view.arousal.map(y);
  const { cells } = view;
  context.save();
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, left, top, right - left, bottom - top);
  if (outlined(x)) {
    context.translate(left, bottom);
    context.scale((right - left) / cells, (top - bottom) / cells);
    context.lineWidth = (1.5 * cells) / (right - left);
    for (const { kind, path } of lines) {
      context.strokeStyle = palette[kind];
      context.stroke(path);
    }
  }
  context.restore();
}

/** Draw marks, small modalities on top. */
export function paintMarks(context, points, x, y, palette, hidden) {
  const number = points.id.length;
  const room = Math.max(0.6, Math.min(1, x.range()[1] / 620)); // smaller on a phone
  const area = room * (number > 1500 ? 36 : number > 300 ? 54 : 80);
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

// What lies over the canvas: axes, mood words, the chosen item with its interval, its curve and its neighbours.
import { shape, svg } from "./dom.js";

const QUADRANTS = [["tense", 0, 1], ["excited", 1, 1], ["sad", 0, 0], ["calm", 1, 0]];
// Russell's circumplex without the names of the quadrants: degrees from pleasure, counter-clockwise.
const WORDS = [["happy", 0], ["delighted", 30], ["aroused", 90], ["distressed", 150], ["miserable", 180], ["depressed", 210], ["bored", 240], ["tired", 270], ["content", 330]];
const RADIUS = 0.42;
export const NARROW = 480; // pixels below which words and numbers make room

export class Overlay {
  constructor(root) {
    this.root = root;
    this.chosen = null;
  }

  clear() {
    this.chosen = null;
  }

  /** An item or a query: {kind, valence, arousal, low?, high?, curve?, near?}; null for nothing. */
  choose(chosen) {
    this.chosen = chosen;
  }

  draw(x, y, side, cursor) {
    this.root.setAttribute("viewBox", `0 0 ${side} ${side}`);
    const [left, right, bottom, top] = [...x.range(), ...y.range()];
    const inner = { x: left, y: top, width: right - left, height: bottom - top };
    this.root.replaceChildren(
      svg("clipPath", { id: "inner" }, svg("rect", inner)),
      svg("rect", { class: "frame", ...inner, rx: 2 }),
      ...this.#axes(x, y, side, [left, right, bottom, top]),
      svg("g", { "clip-path": "url(#inner)" }, this.#words(x, y), this.#choice(x, y), cross(x, y, cursor)),
    );
  }

  #axes(x, y, side, [left, right, bottom, top]) {
    const narrow = side < NARROW;
    const ticks = x.ticks(narrow ? 4 : 6);
    const rows = y.ticks(narrow ? 4 : 6);
    const text = x.tickFormat(6);
    return [
      ...ticks.map((value) => svg("line", { class: value === 0.5 ? "middle" : "rule", x1: x(value), x2: x(value), y1: top, y2: bottom })),
      ...rows.map((value) => svg("line", { class: value === 0.5 ? "middle" : "rule", y1: y(value), y2: y(value), x1: left, x2: right })),
      ...ticks.map((value) => svg("text", { x: x(value), y: bottom + 17, "text-anchor": "middle" }, text(value))),
      ...rows.map((value) => svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, text(value))),
      ...(narrow ? [] : [
        svg("text", { x: (left + right) / 2, y: side - 9, "text-anchor": "middle" }, "unpleasant ← valence → pleasant"),
        svg("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "quiet ← arousal → active"),
      ]),
    ];
  }

  #words(x, y) {
    const radius = x.range()[1] < NARROW ? RADIUS - 0.03 : RADIUS;
    const words = WORDS.map(([word, degrees]) => {
      const angle = (degrees * Math.PI) / 180;
      return svg("text", { class: "word", x: x(0.5 + radius * Math.cos(angle)), y: y(0.5 + radius * Math.sin(angle)) + 4 }, word);
    });
    const corners = QUADRANTS.map(([word, right, top]) =>
      svg("text", { class: "quadrant", x: x(right) + (right ? -14 : 14), y: y(top) + (top ? 28 : -14), "text-anchor": right ? "end" : "start" }, word));
    return [...words, ...corners];
  }

  #choice(x, y) {
    const { chosen } = this;
    if (!chosen) return [];
    const [cx, cy] = [x(chosen.valence), y(chosen.arousal)];
    const parts = [];
    if (chosen.low) {
      const [[v0, a0], [v1, a1]] = [chosen.low, chosen.high];
      parts.push(svg("rect", { class: `interval ${chosen.kind}`, x: x(v0), y: y(a1), width: x(v1) - x(v0), height: y(a0) - y(a1), rx: 6 }));
    }
    if (chosen.curve?.length > 1) {
      parts.push(svg("path", { class: `curve ${chosen.kind}`, d: d3.line((at) => x(at.valence), (at) => y(at.arousal))(chosen.curve) }));
    }
    for (const near of chosen.near ?? []) {
      const [nx, ny] = [x(near.valence), y(near.arousal)];
      parts.push(svg("line", { class: `thread ${near.modality}`, x1: cx, y1: cy, x2: nx, y2: ny }));
      parts.push(svg("path", { class: `near ${near.modality}`, d: shape(near.modality, 110), transform: `translate(${nx} ${ny})` }));
    }
    parts.push(svg("circle", { class: "halo", cx, cy, r: 14 }));
    parts.push(svg("path", { class: `chosen ${chosen.kind}`, d: shape(chosen.kind, 190), transform: `translate(${cx} ${cy})` }));
    return parts;
  }
}

/** Where the keys are. */
function cross(x, y, cursor) {
  if (!cursor) return [];
  const [cx, cy] = [x(cursor.valence), y(cursor.arousal)];
  return [svg("path", { class: "cross", d: `M${cx - 22} ${cy}h12M${cx + 10} ${cy}h12M${cx} ${cy - 22}v12M${cx} ${cy + 10}v12` })];
}

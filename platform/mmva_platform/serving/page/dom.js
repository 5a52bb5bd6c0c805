// Elements from plain values. Text only ever becomes text nodes: captions and names are written by strangers.

export const KINDS = ["image", "music", "caption", "video"];
export const NAMES = { image: "Images", music: "Music", caption: "Captions", video: "Videos" };
const SVG = "http://www.w3.org/2000/svg";
const SHAPES = { image: "symbolCircle", music: "symbolTriangle", caption: "symbolSquare", video: "symbolDiamond", query: "symbolStar" };

export const byId = (id) => document.getElementById(id);
export const count = (number) => number.toLocaleString("en");
export const brief = (number) => (number < 10_000 ? count(number) : number.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 }));
export const two = (number) => number.toFixed(2);
export const baseName = (id) => id.split("/").filter(Boolean).pop() || id;

/** An element with attributes (functions become listeners) and children (strings become text). */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A modality's mark as a path of about `area` square pixels. */
export const shape = (kind, area) => d3.symbol(d3[SHAPES[kind]], area)();

/** A modality's mark as a small picture. */
export function mark(kind) {
  return svg("svg", { class: `mark ${kind}`, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, svg("path", { d: shape(kind, 90) }));
}

/** Tell those who listen. */
export function say(text) {
  byId("said").textContent = text;
}

/** Seconds for people: 3:07, 2 h 5 min. */
export function duration(seconds) {
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

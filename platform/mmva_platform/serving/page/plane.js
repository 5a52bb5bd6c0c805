// The plane: zooming, what lies in the window, picking with the mouse and with keys.
import { getJson } from "./api.js";
import { KINDS, baseName, byId, count, say, two } from "./dom.js";
import { NARROW, Overlay } from "./overlay.js";
import { cloud, colours, outlined, paintCloud, paintMarks } from "./paint.js";

const MARGIN = 0.12; // of the window's side that is loaded around it, so that a small move shows no gap
const REACH = 18; // pixels within which a pointer picks a mark
const SETTLE_MS = 110;
const LEFT = 0.088; // of the side, left of the plane and below it: room for the numbers
const FREE = 0.03; // on the other sides
const DEEPEST = 400;
const STEP = 0.04; // of the window: how far a key moves the cross over a cloud
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Dispatches "open" (an item's id), "probe" (valence, arousal), "close" and "fail" (an error). */
export class Plane {
  constructor() {
    this.on = d3.dispatch("open", "probe", "close", "fail", "moved");
    this.box = byId("plane");
    this.context = this.box.querySelector("canvas").getContext("2d");
    this.overlay = new Overlay(this.box.querySelector("svg"));
    this.kinds = []; // the modalities of the catalog
    this.hidden = new Set();
    this.filters = {}; // mood, width
    this.view = null; // the server's last answer
    this.cursor = null; // {valence, arousal, id?}: where the keys are
    this.zoom = d3.zoom().scaleExtent([1, DEEPEST]).filter((event) => this.#wanted(event)).on("zoom", (event) => this.#zoomed(event.transform));
    this.target = d3.select(this.box).call(this.zoom).on("dblclick.zoom", null);
    this.transform = d3.zoomIdentity;
    this.#listen();
    new ResizeObserver(() => this.#resized()).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.painted = null; // it holds the other colours
      this.draw();
    });
  }

  /** Show another catalog. */
  async setCatalog(name) {
    this.name = name;
    this.view = this.cursor = null;
    this.overlay.clear();
    this.target.call(this.zoom.transform, d3.zoomIdentity);
    await this.load();
  }

  /** Show or hide a modality. */
  toggle(kind) {
    if (!this.hidden.delete(kind)) this.hidden.add(kind);
    this.load();
  }

  /** Mark an item or a query with what belongs to it, and bring it into the window. */
  choose(chosen) {
    this.overlay.choose(chosen);
    if (chosen) {
      this.cursor = { valence: chosen.valence, arousal: chosen.arousal, id: chosen.id };
      this.#bringInto(chosen);
    }
    this.draw();
  }

  /** Ask for what lies in the window, with a margin. */
  async load() {
    if (!this.name || !this.side) return;
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const modality = KINDS.filter((kind) => !this.hidden.has(kind));
    const [v0, v1, a0, a1] = this.#window(MARGIN);
    this.box.setAttribute("aria-busy", "true");
    try {
      const view = modality.length
        ? await getJson(`/catalogs/${encodeURIComponent(this.name)}/view`, { v0, v1, a0, a1, modality, ...this.filters, cells: 128 }, { signal: loading.signal })
        : { valence: [v0, v1], arousal: [a0, a1], total: 0, points: { id: [], modality: [], valence: [], arousal: [] } };
      this.view = view;
      this.painted = null;
      this.#tell();
      this.on.call("moved", this);
      this.draw();
    } catch (error) {
      if (error.name !== "AbortError") this.on.call("fail", this, error);
    } finally {
      if (this.loading === loading) this.box.removeAttribute("aria-busy");
    }
  }

  /** Show only items of a mood, or with narrow intervals; undefined for all. */
  filter(filters) {
    this.filters = Object.fromEntries(Object.entries(filters).filter(([, value]) => value));
    this.load();
  }

  /** What the window is asked for: bounds, modalities, filters. */
  get asked() {
    const [v0, v1, a0, a1] = this.#window();
    return { v0, v1, a0, a1, modality: KINDS.filter((kind) => !this.hidden.has(kind)), ...this.filters };
  }

  /** Bounds of the window, or nothing if it is the whole plane. */
  get window() {
    return this.transform.k > 1 ? this.#window() : null;
  }

  /** Bring bounds [v0, v1, a0, a1] into the window. */
  show([v0, v1, a0, a1]) {
    const k = Math.min(DEEPEST, 1 / Math.max(v1 - v0, a1 - a0, 1 / DEEPEST));
    const { side } = this;
    const [left, bottom] = [LEFT * side, (1 - LEFT) * side];
    const inner = (1 - FREE - LEFT) * side;
    const to = d3.zoomIdentity.translate(left - k * (left + v0 * inner), bottom - k * (bottom - a0 * inner)).scale(k);
    this.target.call(this.zoom.transform, to);
  }

  draw() {
    if (!this.side) return;
    const { context, side } = this;
    const [x, y] = this.scales();
    const palette = colours();
    const [left, right, top, bottom] = [...x.range(), ...y.range().reverse()];
    context.clearRect(0, 0, side, side);
    context.save();
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
    if (this.view?.counts) {
      this.painted ??= cloud(this.view, palette);
      paintCloud(context, this.view, this.painted, x, y, palette);
    } else if (this.view) paintMarks(context, this.view.points, x, y, palette, this.hidden);
    context.restore();
    this.overlay.draw(x, y, side, document.activeElement === this.box && this.keyed ? this.cursor : null);
  }

  /** Scales of the window: valence to x, arousal to y, in pixels. */
  scales() {
    const { side } = this;
    const x = d3.scaleLinear([0, 1], [LEFT * side, (1 - FREE) * side]);
    const y = d3.scaleLinear([0, 1], [(1 - LEFT) * side, FREE * side]);
    return [this.transform.rescaleX(x), this.transform.rescaleY(y)];
  }

  zoomBy(factor) {
    this.target.call(this.zoom.scaleBy, factor);
  }

  reset() {
    this.target.call(this.zoom.transform, d3.zoomIdentity);
  }

  #window(margin = 0) {
    const [x, y] = this.scales();
    const [[v0, v1], [a0, a1]] = [x.domain(), y.domain()];
    const more = margin * (v1 - v0);
    return [v0 - more, v1 + more, a0 - more, a1 + more].map((value) => Math.min(1, Math.max(0, value)));
  }

  #wanted(event) {
    if (event.type === "touchstart") return event.touches.length > 1 || this.transform.k > 1;
    return !event.button && (!event.ctrlKey || event.type === "wheel");
  }

  #listen() {
    const at = (event) => d3.pointer(event, this.box);
    this.target
      .on("pointermove", (event) => this.#hover(...at(event)))
      .on("pointerleave", () => this.#hover(-1e4, -1e4))
      .on("click", (event) => this.#click(...at(event)))
      .on("keydown", (event) => this.#key(event))
      .on("focus blur", () => this.draw());
    for (const [id, act] of [["zoom-in", () => this.zoomBy(2)], ["zoom-out", () => this.zoomBy(0.5)], ["zoom-reset", () => this.reset()]]) {
      byId(id).addEventListener("click", act);
    }
  }

  #zoomed(transform) {
    this.transform = transform;
    const { k } = transform;
    this.box.classList.toggle("zoomed", k > 1); // before that, one finger scrolls the page
    byId("zoom-reset").textContent = `${k < 10 ? Math.round(10 * k) / 10 : Math.round(k)}×`;
    byId("zoom-reset").disabled = k === 1;
    this.#hover(-1e4, -1e4);
    this.draw();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.load(), SETTLE_MS);
  }

  #resized() {
    const side = this.box.clientWidth;
    if (!side || side === this.side) return;
    const first = !this.side;
    this.side = side;
    const ratio = window.devicePixelRatio || 1;
    this.context.canvas.width = this.context.canvas.height = Math.round(side * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const inner = [[LEFT * side, FREE * side], [(1 - FREE) * side, (1 - LEFT) * side]];
    this.zoom.extent(inner).translateExtent(inner);
    this.draw();
    if (first) this.load();
  }

  /** The mark nearest to a place on the screen, as {id, modality, valence, arousal}, or nothing. */
  #pick(px, py) {
    const points = this.view?.points;
    if (!points) return null;
    const [x, y] = this.scales();
    const [best, far] = nearest(points, (index) => Math.hypot(x(points.valence[index]) - px, y(points.arousal[index]) - py));
    return best >= 0 && far <= REACH ? pointOf(points, best) : null;
  }

  #hover(px, py) {
    const found = this.#pick(px, py);
    const tip = byId("tip");
    this.box.classList.toggle("over", Boolean(found));
    tip.hidden = !found;
    if (!found) return;
    tip.textContent = baseName(found.id);
    const [x, y] = this.scales();
    const [left, top] = [x(found.valence), y(found.arousal)];
    const shiftX = left > this.side / 2 ? -tip.offsetWidth - 14 : 14;
    const shiftY = top > this.side - 60 ? -tip.offsetHeight - 8 : 8;
    tip.style.transform = `translate(${Math.max(4, left + shiftX)}px, ${top + shiftY}px)`;
  }

  #click(px, py) {
    const found = this.#pick(px, py);
    this.keyed = false;
    byId("tip").hidden = true;
    if (found) this.on.call("open", this, found.id);
    else if (this.view?.counts) {
      const [x, y] = this.scales();
      const [valence, arousal] = [x.invert(px), y.invert(py)];
      if (Math.min(valence, arousal) >= 0 && Math.max(valence, arousal) <= 1) this.on.call("probe", this, valence, arousal);
    }
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = ARROWS[event.key];
    if (direction) this.#move(...direction);
    else if (event.key === "Enter" && this.cursor) {
      const { id, valence, arousal } = this.cursor;
      if (id) this.on.call("open", this, id, true);
      else this.on.call("probe", this, valence, arousal, true);
    } else if (event.key === "Escape") this.on.call("close", this);
    else if (event.key === "+" || event.key === "=") this.zoomBy(2);
    else if (event.key === "-") this.zoomBy(0.5);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  #move(dx, dy) {
    this.keyed = true;
    const [v0, v1, a0, a1] = this.#window();
    const from = this.cursor ?? { valence: (v0 + v1) / 2, arousal: (a0 + a1) / 2 };
    if (this.view?.points) {
      const to = inDirection(this.view.points, from, dx, dy);
      if (to) this.cursor = to;
      say(to ? `${baseName(to.id)}, ${to.modality}, valence ${two(to.valence)}, arousal ${two(to.arousal)}` : "No item further that way");
    } else {
      const bound = (value) => Math.min(1, Math.max(0, value));
      this.cursor = { valence: bound(from.valence + dx * STEP * (v1 - v0)), arousal: bound(from.arousal + dy * STEP * (a1 - a0)) };
      say(`Valence ${two(this.cursor.valence)}, arousal ${two(this.cursor.arousal)}`);
    }
    if (this.cursor) this.#bringInto(this.cursor);
    this.draw();
  }

  #bringInto({ valence, arousal }) {
    const [v0, v1, a0, a1] = this.#window(-0.02);
    if (valence >= v0 && valence <= v1 && arousal >= a0 && arousal <= a1) return;
    const [x, y] = this.scales();
    this.target.call(this.zoom.translateTo, ...this.transform.invert([x(valence), y(arousal)]));
  }

  #tell() {
    const { total, counts } = this.view;
    byId("veil").hidden = total > 0;
    byId("csv").disabled = total === 0; // no modality would mean all of them
    byId("veil").textContent = this.hidden.size && this.kinds.every((kind) => this.hidden.has(kind)) ? "All modalities are hidden." : "Nothing here. Zoom out, or change the filters.";
    const words = [`${count(total)} ${total === 1 ? "item" : "items"} in and around this window`];
    if (counts) words.push("stronger is denser");
    if (counts && this.side >= NARROW && outlined(this.scales()[0])) words.push("a line runs around half of each modality");
    byId("status").textContent = `${words.join("; ")}.${counts ? " Zoom in for single items, or click a place." : ""}`;
  }
}

const pointOf = (points, index) => ({
  id: points.id[index], modality: points.modality[index], valence: points.valence[index], arousal: points.arousal[index],
});

function nearest(points, distance) {
  let [best, least] = [-1, Infinity];
  for (let index = 0; index < points.id.length; index += 1) {
    const far = distance(index);
    if (far < least) [best, least] = [index, far];
  }
  return [best, least];
}

/** The item that lies nearest in a direction: what lies aside counts double, what lies behind not at all. */
function inDirection(points, from, dx, dy) {
  const [best] = nearest(points, (index) => {
    const [v, a] = [points.valence[index] - from.valence, points.arousal[index] - from.arousal];
    const along = v * dx + a * dy;
    const aside = Math.abs(v * dy) + Math.abs(a * dx);
    return points.id[index] === from.id || along < aside / 2 || along < 0 ? Infinity : along + 2 * aside;
  });
  return best < 0 ? null : pointOf(points, best);
}

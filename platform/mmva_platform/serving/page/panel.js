// The panel beside the plane: an item, a query, a place, or words where there is nothing to show.
import { KINDS, NAMES, baseName, byId, duration, el, mark, svg, two } from "./dom.js";

const AXES = ["valence", "arousal"];

/** Put one section into the panel. */
export function show(...children) {
  byId("panel").replaceChildren(el("section", {}, ...children));
}

export function empty(summary) {
  if (!summary.items) {
    return show(el("h2", {}, "An empty catalog"), el("p", { class: "soft" }, "None of its items could be annotated. To see the causes: mmva annotations status."));
  }
  show(
    el("h2", {}, "Look around"),
    el("p", {}, "The plane shows how items feel: pleasant ones are on the right, active ones at the top. Items close together match, whether pictures, music or sentences."),
    el("p", { class: "soft" }, "Click a point, or focus the plane and use the arrow keys and Enter."),
  );
}

export function noCatalog() {
  show(
    el("h2", {}, "No catalog yet"),
    el("p", {}, "Annotate one, and name it under serving.annotations in the configuration of this server:"),
    el("blockquote", {}, "mmva annotate photos/ --model models:/mmva@champion --out annotations/photos"),
  );
}

export function failed(error, again) {
  show(
    el("h2", { tabindex: "-1" }, "That did not work"),
    el("p", { class: "error", role: "alert" }, error.message),
    el("p", {}, el("button", { type: "button", click: again }, "Try again")),
  );
}

export function loading(words) {
  show(el("p", { class: "soft", role: "status" }, words));
}

/** Heading with the item's mark and a button that closes; keys: Escape closes as well. */
function head(kind, title, under, close) {
  return el("div", { class: "head" }, mark(kind),
    el("div", {}, el("h2", { tabindex: "-1" }, title), el("p", { class: "soft" }, under)),
    el("button", { type: "button", class: "close", "aria-label": "Close", click: close }, "×"));
}

/** An item in full. */
export function item({ item: found, near }, media, actions) {
  const kind = found.modality;
  const under = [kind, found.mood, found.duration_s ? duration(found.duration_s) : null].filter(Boolean).join(" · ");
  const chart = found.windows.length > 1 ? curve(found) : null;
  show(
    head(kind, baseName(found.id), under, actions.close),
    content(found, media, chart?.now),
    figures(found),
    chart?.node ?? null,
    found.id !== baseName(found.id) ? el("p", { class: "soft" }, found.id) : null,
  );
  neighbours(near, media, actions, "Nearest");
}

/** A query that was placed: what it was, its point, and what matches, music first. */
export function query(placed, shown, media, actions) {
  const title = { image: "Your picture", music: "Your music", caption: "Your sentence", video: "Your video" }[placed.modality];
  show(
    head("query", title, placed.mood, actions.close),
    shown,
    figures(placed, "query"),
    placed.same_model ? null : el("p", { class: "note" }, "It was placed by another model than the catalog's, so distances are only rough."),
  );
  neighbours(placed.near, media, actions, "Matching", ["music", "image", "caption", "video"]);
}

/** What lies at a place in a crowd. */
export function place(found, media, actions) {
  show(head("query", "Around this place", found.mood, actions.close), figures(found, "query"));
  neighbours(found.near, media, actions, "Nearest");
}

function content(found, media, onTime) {
  if (found.modality === "image") return media.picture(found.id);
  if (found.modality !== "caption") return media.sound(found.id, found.modality, onTime);
  const quote = el("blockquote", { class: "caption", tabindex: "0", "aria-label": "Caption" }, found.text ?? "…");
  if (found.text === null) {
    media.text(found.id).then((text) => (quote.textContent = text), (error) => (quote.textContent = error.message));
  }
  return quote;
}

/** Both axes as numbers and as a line with the interval on it. */
function figures(found, kind = found.modality) {
  const rows = AXES.map((axis) => {
    const [low, high] = [found[`${axis}_low`], found[`${axis}_high`]];
    const known = typeof low === "number" && typeof high === "number";
    const words = known ? `${two(low)} to ${two(high)} with 90 % confidence` : "without an interval";
    const track = svg("svg", { class: "track", viewBox: "0 0 100 22", preserveAspectRatio: "none", role: "img", "aria-label": words },
      svg("title", {}, words),
      svg("line", { class: "all", x1: 0, x2: 100, y1: 11, y2: 11, "vector-effect": "non-scaling-stroke" }),
      known ? svg("line", { class: "some", x1: 100 * low, x2: 100 * high, y1: 11, y2: 11, "vector-effect": "non-scaling-stroke" }) : null);
    const dot = svg("svg", { class: "track", "aria-hidden": "true" }, track, svg("circle", { cx: `${100 * found[axis]}%`, cy: 11, r: 6 }));
    return [el("dt", {}, axis[0].toUpperCase() + axis.slice(1)), el("dd", {}, two(found[axis])), el("dd", {}, dot)];
  });
  const known = typeof found.valence_low === "number";
  return el("div", {}, el("dl", { class: `axes ${kind}` }, rows.flat()),
    known ? el("p", { class: "soft" }, "Bars, and the dashed frame in the plane: the 90 % interval.") : null);
}

/** Valence and arousal over time; `now` moves the line to where the player is. */
function curve(found) {
  const last = found.windows.at(-1).start_s || 1;
  const x = d3.scaleLinear([0, last], [0, 300]);
  const y = d3.scaleLinear([0, 1], [90, 6]);
  const line = (axis) => d3.line((at) => x(at.start_s), (at) => y(at[axis])).curve(d3.curveMonotoneX)(found.windows);
  const now = svg("line", { class: "now", y1: 0, y2: 96, visibility: "hidden" });
  const chart = svg("svg", { class: `chart ${found.modality}`, viewBox: "0 0 300 96", preserveAspectRatio: "none", role: "img", "aria-label": "Valence and arousal over time" },
    svg("line", { x1: 0, x2: 300, y1: y(0.5), y2: y(0.5) }), svg("path", { d: line("valence") }), svg("path", { class: "arousal", d: line("arousal") }), now);
  const node = el("div", {}, chart, el("p", { class: "soft legend" }, el("span", {}, "0:00"), el("span", {}, "— valence   – – arousal"), el("span", {}, duration(last))));
  return {
    node,
    now: (seconds) => {
      const at = x(Math.min(seconds, last));
      now.setAttribute("x1", at);
      now.setAttribute("x2", at);
      now.setAttribute("visibility", "visible");
    },
  };
}

function neighbours(near, media, actions, word, order = KINDS) {
  const groups = order.filter((kind) => near[kind]?.length).map((kind) =>
    el("div", { class: "group" }, el("h3", {}, `${word} ${NAMES[kind].toLowerCase()}`), el("ul", { class: "hits" }, near[kind].map((hit) => entry(hit, media, actions)))));
  const section = el("section", { "aria-label": "Neighbours", keydown: walk }, groups.length ? groups : el("p", { class: "soft" }, "This catalog has no other modality to match."));
  byId("panel").append(section);
}

function entry(hit, media, actions) {
  const name = el("span", { class: "name" }, baseName(hit.id));
  const picture = hit.modality === "image" ? media.thumb(hit.id) : el("span", { class: "thumb" }, mark(hit.modality));
  if (hit.modality === "caption") media.text(hit.id).then((text) => (name.textContent = text), () => {});
  const button = el("button", { type: "button", class: "hit", click: () => actions.open(hit.id, true) },
    picture, el("span", { class: "what" }, name, el("span", { class: "soft" }, `${hit.mood} · match ${two(hit.score)}`)));
  return el("li", {}, button, hit.modality === "music" ? media.playButton(hit.id) : null);
}

/** Arrow keys go from neighbour to neighbour. */
function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.classList.contains("hit")) return;
  const all = [...event.currentTarget.querySelectorAll(".hit")];
  all[Math.min(all.length - 1, Math.max(0, all.indexOf(event.target) + step))].focus();
  event.preventDefault();
}

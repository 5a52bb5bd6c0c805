// The page: its parts, and what one asks of another.
import { Refused, address, getJson, hasKey, onKeyNeeded, request, setKey } from "./api.js";
import { KINDS, NAMES, baseName, brief, byId, count, el, mark, say, two } from "./dom.js";
import { Jobs } from "./jobs.js";
import { Media, download } from "./media.js";
import * as panel from "./panel.js";
import { listen } from "./place.js";
import { Plane } from "./plane.js";

const plane = new Plane();
const jobs = new Jobs(byId("show-jobs"), () => close());
const state = { catalog: null, item: null, text: null, place: null, summary: { items: 0, by_modality: {} }, media: null, asked: 0 };

// --- the key ---------------------------------------------------------------------------------------------------------

let asking = null;

/** Ask for a key, once for all that wait for it. */
function askForKey(why) {
  const dialog = byId("key-dialog");
  if (asking) return asking;
  byId("key-why").textContent = why ?? "The catalog asks for a key with the scope read, and annotate to place something. It is kept for this tab only.";
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  asking = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      asking = null;
      if (dialog.returnValue !== "given") return resolve(false);
      setKey(byId("key").value.trim());
      byId("key").value = "";
      resolve(true);
    }, { once: true });
  });
  return asking;
}

onKeyNeeded((used, refused) => {
  if (used !== sessionStorage.getItem("mmva-key")) return Promise.resolve(true); // another request has asked already
  return askForKey(used === null ? undefined : refused);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("key-dialog").close("given");
});
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
byId("change-key").addEventListener("click", async () => {
  const why = hasKey() ? "Another key replaces the one of this tab." : undefined;
  if (await askForKey(why)) start();
});

const given = /^#key=([\w-]+)$/.exec(location.hash); // by `mmva explore`
if (given) {
  setKey(given[1]);
  history.replaceState(null, "", location.pathname);
}

// --- what is shown beside the plane ----------------------------------------------------------------------------------

/** Begin to show something else; whether it is still wanted when its data come. */
function turn() {
  jobs.stop();
  state.item = state.text = state.place = null;
  state.media?.close();
  state.media = new Media(state.catalog);
  const mine = (state.asked += 1);
  return () => mine === state.asked;
}

function close() {
  turn();
  keepAddress();
  plane.choose(null);
  panel.empty(state.summary);
  byId("plane").focus({ preventScroll: true });
}

const actions = { open: (id, focus) => openItem(id, focus), close };

/** Run a step of the page; what goes wrong is said in the panel. */
async function attempt(wanted, work, again) {
  try {
    await work();
  } catch (error) {
    if (wanted() && error.name !== "AbortError") panel.failed(error, again);
  }
}

function reveal(focus) {
  const heading = byId("panel").querySelector("h2");
  if (focus) heading?.focus({ preventScroll: true });
  if (focus || matchMedia("(max-width: 900px)").matches) heading?.scrollIntoView({ block: "nearest" });
}

function openItem(id, focus = false) {
  const wanted = turn();
  return attempt(wanted, async () => {
    const found = await getJson(state.media.path("item"), { id });
    if (!wanted()) return;
    const { item, near } = found;
    panel.item(found, state.media, actions);
    state.item = id;
    plane.choose({ ...item, kind: item.modality, ...interval(item), curve: item.windows, near: Object.values(near).flat() });
    keepAddress();
    say(`${baseName(id)}, ${item.modality}, ${item.mood}, valence ${two(item.valence)}, arousal ${two(item.arousal)}`);
    reveal(focus);
  }, () => openItem(id, focus));
}

function interval(item) {
  if (typeof item.valence_low !== "number" || typeof item.arousal_low !== "number") return {};
  return { low: [item.valence_low, item.arousal_low], high: [item.valence_high, item.arousal_high] };
}

function openPlace(valence, arousal, focus = false) {
  const wanted = turn();
  return attempt(wanted, async () => {
    const found = await getJson(state.media.path("around"), { v: valence, a: arousal });
    if (!wanted()) return;
    panel.place(found, state.media, actions);
    state.place = [valence, arousal];
    keepAddress();
    plane.choose({ ...found, kind: "query", near: Object.values(found.near).flat() });
    reveal(focus);
  }, () => openPlace(valence, arousal, focus));
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // written by hand
  }
}

/** Keep in the address what is shown, as #catalog/item?window, filters and query: a link shows the same. */
function keepAddress() {
  const query = new URLSearchParams(plane.filters);
  if (plane.window) query.set("at", plane.window.map((bound) => bound.toFixed(4)).join(","));
  if (plane.hidden.size) query.set("hidden", [...plane.hidden].join(","));
  if (state.text) query.set("text", state.text);
  if (state.place) query.set("near", state.place.map((value) => value.toFixed(4)).join(","));
  const first = state.catalog === byId("catalog").options[0]?.value;
  const item = state.item === null ? "" : `/${encodeURIComponent(state.item)}`;
  const shown = item || query.size || !first ? `#${encodeURIComponent(state.catalog)}${item}${query.size ? `?${query}` : ""}` : location.pathname;
  if (shown !== (location.hash || location.pathname)) history.replaceState(null, "", shown);
}

/** Open what the address names. */
async function openAddress(hash) {
  const [, name, item, query = ""] = /^#([^/?]+)(?:\/([^?]+))?(?:\?(.*))?$/.exec(hash) ?? [];
  const [catalog, id] = [name, item].map((part) => part && decoded(part));
  if (!catalog) return;
  if (catalog !== state.catalog && [...byId("catalog").options].some((option) => option.value === catalog)) {
    byId("catalog").value = catalog;
    await openCatalog(catalog);
  }
  if (catalog !== state.catalog) return;
  const asked = new URLSearchParams(query);
  openView(asked);
  const place = asked.get("near")?.split(",").map(Number) ?? [];
  if (id) await openItem(id);
  else if (asked.has("text")) await openQuery({ text: asked.get("text") });
  else if (place.length === 2 && place.every(inPlane)) await openPlace(...place);
}

const inPlane = (value) => value >= 0 && value <= 1;

/** Window, modalities and filters as an address names them. */
function openView(query) {
  const bounds = query.get("at")?.split(",").map(Number) ?? [];
  const hidden = query.get("hidden")?.split(",") ?? [];
  byId("mood").value = query.get("mood") ?? "";
  byId("width").value = query.get("width") ?? "1";
  plane.hidden = new Set(KINDS.filter((kind) => hidden.includes(kind)));
  drawKinds();
  filter();
  if (bounds.length === 4 && bounds.every(inPlane)) plane.show(bounds);
}

function filter() {
  const width = byId("width").value;
  byId("width-said").textContent = width === "1" ? "any" : `≤ ${Number(width).toFixed(2)}`;
  plane.filter({ mood: byId("mood").value, width: width === "1" ? "" : width });
}

/** Place a sentence or a file, and show what matches. */
function openQuery(brought) {
  const wanted = turn();
  panel.loading(brought.file ? `Placing ${brought.file.name}…` : "Placing your sentence…");
  return attempt(wanted, async () => {
    const row = await annotated(brought);
    const found = await getJson(state.media.path("around"), { v: row.valence, a: row.arousal });
    if (!wanted()) return;
    const placed = { ...found, modality: row.modality, same_model: row.model_digest === found.model.digest };
    state.text = brought.text ?? null;
    keepAddress();
    panel.query(placed, shownQuery(brought, placed.modality), state.media, actions);
    plane.choose({ ...placed, kind: "query", near: placed.near.music ?? [] });
    say(`Placed at valence ${two(placed.valence)}, arousal ${two(placed.arousal)}: ${placed.mood}`);
    reveal(true);
  }, () => openQuery(brought));
}

/** The row of a sentence or a file, by the model that answers now. */
async function annotated({ file, text }) {
  let sent = { headers: { "Content-Type": "application/json" }, body: JSON.stringify({ items: [{ caption: text }] }) };
  if (file) {
    sent = { body: new FormData() };
    sent.body.append("file", file);
  }
  const answer = await request(`v1/annotate${file ? "/upload" : ""}`, { method: "POST", ...sent });
  const [row] = (await answer.json()).items;
  if (row.error) throw new Refused(422, row.modality ? row.error.message : "Only a picture, music, a video or a sentence can be placed.");
  return row;
}

function shownQuery({ file, text }, modality) {
  if (!file) return el("blockquote", {}, text);
  const src = URL.createObjectURL(file);
  state.media.urls.push(src);
  if (modality !== "image") return el(modality === "video" ? "video" : "audio", { controls: true, class: "sound", src });
  const words = el("p", { class: "missing" }, `${file.name} (this browser cannot show its format)`);
  const picture = el("img", { src, alt: "The picture that was dropped", error: () => picture.replaceWith(words) });
  return el("div", { class: "picture" }, picture);
}

// --- the catalog -----------------------------------------------------------------------------------------------------

function drawKinds() {
  const { by_modality: found } = state.summary;
  plane.kinds = KINDS.filter((kind) => found[kind]);
  byId("kinds").replaceChildren(...plane.kinds.map((kind) => {
    const button = el("button", { type: "button", "aria-pressed": String(!plane.hidden.has(kind)), class: kind }, mark(kind), `${NAMES[kind]} `, el("b", { title: count(found[kind]) }, brief(found[kind])));
    button.addEventListener("click", () => {
      plane.toggle(kind);
      button.setAttribute("aria-pressed", String(!plane.hidden.has(kind)));
    });
    return button;
  }));
}

function openCatalog(name) {
  state.catalog = name;
  const wanted = turn();
  return attempt(wanted, async () => {
    state.summary = await getJson(`/catalogs/${encodeURIComponent(name)}`);
    if (!wanted()) return;
    const { model, items } = state.summary;
    byId("summary").textContent = `${count(items)} items, placed by ${model.name}${model.version ? ` version ${model.version}` : ""}`;
    plane.hidden.clear();
    plane.filters = {};
    drawKinds();
    byId("mood").replaceChildren(el("option", { value: "" }, "any"), ...state.summary.moods.map((mood) => el("option", {}, mood)));
    byId("width").value = "1";
    byId("width-said").textContent = "any";
    byId("filters").hidden = !items;
    panel.empty(state.summary);
    await plane.setCatalog(name);
  }, () => openCatalog(name));
}

async function start() {
  const asked = location.hash; // before the catalog is shown, which writes an address of its own
  const wanted = turn();
  panel.loading("Opening the catalog…");
  await attempt(wanted, async () => {
    const { catalogs } = await getJson("");
    byId("show-jobs").hidden = false;
    byId("place").hidden = !catalogs.length;
    const select = byId("catalog");
    select.replaceChildren(...catalogs.map(({ name, title }) => el("option", { value: name }, title)));
    select.hidden = catalogs.length < 1;
    if (!catalogs.length) return panel.noCatalog();
    await openCatalog(catalogs.some(({ name }) => name === state.catalog) ? state.catalog : catalogs[0].name);
    select.value = state.catalog;
    await openAddress(asked);
  }, start);
}

plane.on
  .on("open", (id, focus) => openItem(id, focus))
  .on("probe", (valence, arousal, focus) => openPlace(valence, arousal, focus))
  .on("close", close)
  .on("moved", keepAddress)
  .on("fail", (error) => panel.failed(error, () => openCatalog(state.catalog)));
// Not location.hash: the plane may have written an address since the event was queued.
window.addEventListener("hashchange", (event) => openAddress(new URL(event.newURL).hash));
byId("catalog").addEventListener("change", (event) => openCatalog(event.target.value));
byId("mood").addEventListener("change", filter);
byId("width").addEventListener("input", filter);
byId("csv").addEventListener("click", async () => {
  await attempt(() => true, async () => download(await request(address(`/catalogs/${encodeURIComponent(state.catalog)}/view.csv`, plane.asked)), "items.csv"));
});
byId("show-jobs").addEventListener("click", () => {
  if (jobs.shown) return close();
  turn();
  jobs.open();
});
byId("panel").addEventListener("keydown", (event) => event.key === "Escape" && close());
listen(openQuery);
start();

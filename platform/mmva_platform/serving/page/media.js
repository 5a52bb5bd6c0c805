// Pictures and sound of items: fetched with the key, shown through blob URLs that are let go with the panel.
import { address, getJson, request } from "./api.js";
import { baseName, el, mark } from "./dom.js";

const UNASKED_BYTES = 12e6; // sound up to this size is loaded with its item

/** Save a response's body as a file. */
export async function download(response, name) {
  const href = URL.createObjectURL(await response.blob());
  el("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

/** Media of one panel; close() frees them. */
export class Media {
  constructor(catalog) {
    this.catalog = catalog;
    this.urls = [];
    this.closing = new AbortController();
  }

  close() {
    this.closing.abort();
    const urls = this.urls; // a picture that is still on its way would complain
    setTimeout(() => urls.forEach((url) => URL.revokeObjectURL(url)), 1000);
    this.player?.pause();
  }

  path(what) {
    return `/catalogs/${encodeURIComponent(this.catalog)}/${what}`;
  }

  async blobUrl(response) {
    const blob = await response.blob();
    this.closing.signal.throwIfAborted();
    const url = URL.createObjectURL(blob);
    this.urls.push(url);
    return url;
  }

  fetch(what, parameters) {
    return request(address(this.path(what), parameters), { signal: this.closing.signal });
  }

  /** A picture; until it is there, and if it never comes, words. */
  picture(id) {
    const frame = el("div", { class: "picture" }, el("p", { class: "missing" }, "Loading the picture…"));
    this.#into(frame, async () => {
      const src = await this.blobUrl(await this.fetch("thumbnail", { id, side: 960 }));
      const image = el("img", { alt: `Picture ${baseName(id)}`, src });
      await image.decode();
      return image;
    });
    return frame;
  }

  /** A small square picture. */
  thumb(id) {
    const frame = el("span", { class: "thumb" }, mark("image"));
    this.fetch("thumbnail", { id, side: 96 })
      .then((response) => this.blobUrl(response))
      .then((src) => frame.replaceWith(el("img", { class: "thumb", alt: "", src })))
      .catch(() => {});
    return frame;
  }

  /** A player of music or video; large files wait to be asked for. `onTime` hears where it is, in seconds. */
  sound(id, modality, onTime) {
    const frame = el("div", { class: modality === "video" ? "picture" : "" }, el("p", { class: "missing" }, "Loading the sound…"));
    this.#into(frame, () => this.#player(id, modality, onTime, frame, UNASKED_BYTES));
    return frame;
  }

  async #player(id, modality, onTime, frame, most) {
    const response = await this.fetch("media", { id });
    const size = Number(response.headers.get("Content-Length"));
    if (size > most) {
      await response.body.cancel();
      const load = () => this.#into(frame, () => this.#player(id, modality, onTime, frame, Infinity));
      return el("p", { class: "missing" }, el("button", { type: "button", click: load }, `Load ${(size / 1e6).toFixed(0)} MB to play it`));
    }
    const src = await this.blobUrl(response);
    const player = el(modality === "video" ? "video" : "audio", { controls: true, class: "sound", src, "aria-label": `Player of ${baseName(id)}` });
    if (modality === "video") player.classList.remove("sound");
    player.addEventListener("timeupdate", () => onTime?.(player.currentTime));
    player.addEventListener("play", () => this.#plays(player));
    player.addEventListener("error", () => player.replaceWith(el("p", { class: "missing" }, "This browser cannot play the format of this file.")));
    return player;
  }

  /** A caption's text; `found` gets it, or words that say why not. */
  async text(id) {
    return (await getJson(this.path("text"), { id }, { signal: this.closing.signal })).text;
  }

  /** A small button that plays a piece of music. */
  playButton(id) {
    const label = `Play ${baseName(id)}`;
    const button = el("button", { type: "button", class: "play", "aria-label": label }, "▶");
    let player = null;
    button.addEventListener("click", async () => {
      if (player) return player.paused ? player.play() : player.pause();
      button.disabled = true;
      try {
        player = new Audio(await this.blobUrl(await this.fetch("media", { id })));
        const show = () => (button.textContent = player.paused ? "▶" : "❚❚");
        for (const name of ["play", "pause", "ended"]) player.addEventListener(name, show);
        player.addEventListener("play", () => this.#plays(player));
        await player.play();
      } catch {
        player = null;
        button.textContent = "×";
        button.title = "cannot be played";
      } finally {
        button.disabled = player === null;
      }
    });
    return button;
  }

  /** One at a time. */
  #plays(player) {
    if (this.player !== player) this.player?.pause();
    this.player = player;
  }

  async #into(frame, make) {
    try {
      frame.replaceChildren(await make());
    } catch (error) {
      if (error.name === "AbortError") return;
      const known = { 404: "The file no longer exists.", 409: "The file has changed since it was annotated.", 403: "The file is outside the folders that this server may show." };
      frame.replaceChildren(el("p", { class: "missing" }, known[error.status] ?? (error.status === undefined ? "This file cannot be shown." : error.message)));
    }
  }
}

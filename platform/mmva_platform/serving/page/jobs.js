// The annotation jobs of this server, looked at again every few seconds while they are shown.
import { request } from "./api.js";
import { byId, count, duration, el } from "./dom.js";
import { failed, loading, show } from "./panel.js";

const EVERY_MS = 4000;

export class Jobs {
  constructor(button, close) {
    this.button = button;
    this.close = close;
    this.timer = null;
  }

  get shown() {
    return this.button.getAttribute("aria-pressed") === "true";
  }

  async open() {
    this.button.setAttribute("aria-pressed", "true");
    loading("Looking at the jobs…");
    await this.#look();
  }

  stop() {
    this.button.setAttribute("aria-pressed", "false");
    clearTimeout(this.timer);
  }

  async #look() {
    clearTimeout(this.timer);
    try {
      const { jobs } = await (await request("v1/annotation-jobs?limit=20&progress=true")).json();
      if (!this.shown) return;
      this.#draw(jobs);
    } catch (error) {
      if (this.shown) failed(error, () => this.#look());
      return;
    }
    this.timer = setTimeout(() => (document.hidden ? (this.timer = setTimeout(() => this.#look(), EVERY_MS)) : this.#look()), EVERY_MS);
  }

  #draw(jobs) {
    const list = byId("panel").querySelector(".jobs");
    if (list && jobs.length) return list.replaceChildren(...jobs.map(row));
    const close = el("button", { type: "button", class: "close", "aria-label": "Close the jobs", click: this.close }, "×");
    show(
      el("div", { class: "head" }, el("div", {}, el("h2", { tabindex: "-1" }, "Annotation jobs")), close),
      jobs.length ? el("ul", { class: "jobs" }, jobs.map(row)) : el("p", { class: "soft" }, "None yet. Start one with POST /v1/annotation-jobs."),
    );
  }
}

function row(job) {
  const { items_done: done = 0, items = null, eta_s: left = null } = job.progress ?? {};
  const words = [items === null ? `${count(done)} items` : `${count(done)} of ${count(items)} items`];
  if (left !== null) words.push(`about ${duration(left)} left`);
  if (job.message) words.push(job.message);
  const bar = items === null && job.state === "running"
    ? el("progress", { "aria-label": `Progress of ${job.id}` })
    : el("progress", { max: items || 1, value: done, "aria-label": `Progress of ${job.id}` });
  return el("li", {},
    el("div", { class: "row" }, el("b", {}, job.catalog), el("span", { class: `state ${job.state === "failed" ? "failed" : ""}` }, job.state)),
    bar, el("p", { class: "soft" }, words.join(" · ")));
}

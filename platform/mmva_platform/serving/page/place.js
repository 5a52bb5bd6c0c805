// What people bring: a sentence, or a file that is chosen, dropped or pasted.
import { byId } from "./dom.js";

/** Call `placed` with {text} or {file}. */
export function listen(placed) {
  const [form, sentence, file, choose] = ["place", "sentence", "file", "choose"].map(byId);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = sentence.value.trim();
    if (text) placed({ text });
    else sentence.focus();
  });
  sentence.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  choose.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      file.click();
    }
  });
  file.addEventListener("change", () => {
    if (file.files.length) placed({ file: file.files[0] });
    file.value = "";
  });
  document.addEventListener("paste", (event) => {
    const pasted = event.clipboardData?.files[0];
    if (pasted && !form.hidden) placed({ file: pasted });
  });
  dropping(form, placed);
}

function dropping(form, placed) {
  const veil = byId("drop");
  let depth = 0; // dragenter and dragleave come for every element on the way
  const carries = (event) => !form.hidden && [...(event.dataTransfer?.types ?? [])].includes("Files");
  const shows = (change) => {
    depth = Math.max(0, depth + change);
    veil.hidden = depth === 0;
  };
  document.addEventListener("dragenter", (event) => carries(event) && shows(1));
  document.addEventListener("dragleave", (event) => carries(event) && shows(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // a file beside the mark must not replace the page
    shows(-depth);
    const dropped = event.dataTransfer?.files[0];
    if (dropped && !form.hidden) placed({ file: dropped });
  });
}

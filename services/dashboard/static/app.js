// What HTML alone cannot do: the reader's zone, what follows # in a link, uploads with progress, and closing menus.
"use strict";

const language = document.documentElement.lang;
const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

function showTimes(root) {
  for (const element of root.querySelectorAll("time[data-show]")) {
    const at = new Date(element.dateTime);
    const how = element.dataset.show;
    const full = at.toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });
    element.title = at.toLocaleString(language, { dateStyle: "full", timeStyle: "long" });
    if (how === "age") element.textContent = age(at);
    else if (how === "date") element.textContent = at.toLocaleDateString(language, { dateStyle: "medium" });
    else element.textContent = full;
  }
}

function age(at) {
  const seconds = (at - Date.now()) / 1000;
  const words = new Intl.RelativeTimeFormat(language, { numeric: "auto" });
  for (const [unit, long] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= long) return words.format(Math.round(seconds / long), unit);
  }
  return words.format(Math.round(seconds), "second");
}

// One-time links carry their code after #, which no server and no log sees.
function takeFragment() {
  const field = document.querySelector("input[data-from-fragment]");
  if (!field || !location.hash) return;
  field.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
}

function closeMenus() {
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details[data-menu][open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details[data-menu][open]")) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
}

// A form with data-upload sends its file as the body to the API, with progress, and goes where data-then says:
// {id} there is a field of the answer. With data-into that page's part is put there instead. The fields with data-query
// become the query.
function sendFiles() {
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-upload]");
    if (!form) return;
    event.preventDefault();
    upload(form);
  });
  document.addEventListener("dragover", (event) => {
    const place = event.target.closest(".drop");
    if (place) { event.preventDefault(); place.classList.add("over"); }
  });
  document.addEventListener("dragleave", (event) => event.target.closest?.(".drop")?.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    const place = event.target.closest(".drop");
    if (!place) return;
    event.preventDefault();
    place.classList.remove("over");
    const field = place.querySelector('input[type="file"]');
    field.files = event.dataTransfer.files;
    field.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

function upload(form) {
  const file = form.querySelector('input[type="file"]').files[0];
  const said = form.querySelector("[data-said]");
  const bar = form.querySelector("progress");
  const button = form.querySelector("button");
  if (!file) return;
  const target = new URL(form.dataset.upload, location.href);
  for (const field of form.querySelectorAll("[data-query]")) {
    if (field.value.trim()) target.searchParams.set(field.name, field.value.trim());
  }
  const request = new XMLHttpRequest();
  request.open("POST", target);
  request.responseType = "json";
  request.setRequestHeader("X-CSRF-Token", csrf);
  request.setRequestHeader("Content-Type", form.dataset.type || file.type || (/\.dcm$/i.test(file.name) ? "application/dicom" : "application/octet-stream"));
  request.upload.addEventListener("progress", (event) => {
    bar.hidden = false;
    if (event.lengthComputable) { bar.max = event.total; bar.value = event.loaded; }
  });
  request.addEventListener("load", () => {
    button.disabled = false;
    if (request.status >= 200 && request.status < 300 && form.dataset.into) {
      bar.hidden = true;
      htmx.ajax("GET", filled(form.dataset.then, request.response), { target: form.dataset.into, swap: "innerHTML" });
      return;
    }
    if (request.status >= 200 && request.status < 300) {
      location.href = filled(form.dataset.then, request.response);
      return;
    }
    bar.hidden = true;
    said.textContent = request.response?.detail ?? form.dataset.failed;
    said.classList.add("bad");
    said.hidden = false;
  });
  request.addEventListener("error", () => {
    button.disabled = false;
    bar.hidden = true;
    said.textContent = form.dataset.failed;
    said.classList.add("bad");
    said.hidden = false;
  });
  button.disabled = true;
  said.hidden = true;
  request.send(file);
}

function filled(address, answer) {
  return address.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(answer?.[name] ?? ""));
}

// A chosen picture is shown before it is sent, where the browser can draw it.
function showChosen() {
  document.addEventListener("change", (event) => {
    const form = event.target.closest('form[data-upload]');
    const shown = form?.querySelector("img[data-chosen]");
    if (!shown || event.target.type !== "file") return;
    if (shown.src) URL.revokeObjectURL(shown.src);
    const file = event.target.files[0];
    shown.hidden = !file || !["image/png", "image/jpeg"].includes(file.type);
    if (shown.hidden) { shown.removeAttribute("src"); return; }
    shown.onerror = () => { shown.hidden = true; };
    shown.src = URL.createObjectURL(file);
  });
}

function copyTexts() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
    button.textContent = button.dataset.copied;
  });
}

showTimes(document);
takeFragment();
closeMenus();
sendFiles();
copyTexts();
showChosen();
document.querySelector("[data-focus]")?.focus();
document.addEventListener("htmx:after:swap", () => {
  showTimes(document);
  // "The job is queued" is no news any more beside a job that has ended.
  if (document.querySelector("#job:not([hx-get])")) document.querySelector(".note[role=status]")?.remove();
});
setInterval(() => showTimes(document), 30000);

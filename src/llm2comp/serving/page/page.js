// What the page does: it asks the server for embeddings, and shows what they say of the texts.

import { drawMap, drawMatrix, drawTable, drawTokens, element, percent, short } from "./drawing.js";
import { dot, principalAxes, products, unitVector } from "./vectors.js";

const NEAREST = 10;
const IN_MATRIX = 40;
const TOP_TOKENS = 5;
const LARGEST_FILE = 5_000_000;
const at = (id) => document.getElementById(id);
let token = ""; // in memory only

/** An error whose message says what to do. */
class Problem extends Error {}

/** Return the answer of a route, and the milliseconds that it took. */
async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const start = performance.now();
  let response, answer;
  try {
    const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
    response = await fetch(path, { headers, ...options });
    answer = await response.json();
  } catch {
    throw new Problem("The server does not answer; see whether it runs, and try again.");
  }
  if (response.ok) return { answer, milliseconds: performance.now() - start };
  if (response.status === 401) {
    askForToken();
    throw new Problem(token ? "The server does not know this token; copy it again." : "This server wants a token; write it into the field below.");
  }
  const wait = response.headers.get("Retry-After");
  const said = answer.error?.message ?? `The server answers with status ${response.status}; see its log`;
  throw new Problem(`${said}${wait ? ` (Retry-After: ${wait} s)` : ""}.`);
}

function askForToken() {
  at("access").hidden = false;
  at("token").focus();
}

function show(error) {
  if (!(error instanceof Problem)) console.error(error);
  at("problem").textContent = error instanceof Problem ? error.message : `The page failed: ${error.message}; load it again.`;
  at("problem").scrollIntoView({ block: "nearest" });
}

/** Let a form do one thing at a time, and show what goes wrong. */
function onSubmit(form, status, action) {
  const button = form.querySelector("button");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.getAttribute("aria-disabled") === "true") return;
    button.setAttribute("aria-disabled", "true");
    at("problem").textContent = "";
    status.textContent = "Working …";
    try {
      status.textContent = await action();
    } catch (error) {
      status.textContent = "";
      show(error);
    } finally {
      button.removeAttribute("aria-disabled");
    }
  });
}

// Models

let models = [];

async function listModels() {
  const chosen = at("model").value;
  models = (await ask("v1/models")).answer.data;
  at("model").replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
  if (models.some(({ id }) => id === chosen)) at("model").value = chosen;
  showMemoryForm();
}

function model() {
  const found = models.find(({ id }) => id === at("model").value);
  if (!found) throw new Problem("There is no list of models yet; load the page again.");
  return found;
}

function showMemoryForm() {
  const has = models.some((one) => one.id === at("model").value && one.memory_tokens > 0);
  at("memory-form").hidden = !has;
  at("memory-none").hidden = has;
  if (!has) at("memory").hidden = true;
}

// Texts

function lines() {
  return at("texts").value.split(/\r\n|\r|\n/).map((line) => line.trim()).filter(Boolean);
}

async function read(file) {
  if (file.type && !file.type.startsWith("text/")) throw new Problem(`${file.name} is no text file; take one with one text per line.`);
  if (file.size > LARGEST_FILE) throw new Problem(`${file.name} has more than 5 MB; take a smaller file, or use llm2comp encode.`);
  try {
    at("texts").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Problem(`${file.name} is not UTF-8; save it as UTF-8.`);
  }
  at("problem").textContent = "";
  at("status").textContent = `${file.name}: ${lines().length} texts.`;
}

function acceptFiles() {
  const area = at("texts");
  const hasFile = (event) => event.dataTransfer.types.includes("Files");
  area.addEventListener("dragover", (event) => {
    if (!hasFile(event)) return; // a dragged selection is inserted by the browser
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    area.classList.remove("over");
    if (!hasFile(event)) return;
    event.preventDefault();
    read(event.dataTransfer.files[0]).catch(show);
  });
  at("file").addEventListener("change", () => {
    if (at("file").files[0]) read(at("file").files[0]).catch(show);
    at("file").value = ""; // so that the same file can be taken again
  });
}

// Comparison

async function embed(texts, prompt) {
  const body = { model: model().id, input: texts, encoding_format: "base64" };
  if (prompt) body.input_type = prompt;
  const { answer, milliseconds } = await ask("v1/embeddings", body);
  return { vectors: answer.data.map((row) => unitVector(row.embedding)), tokens: answer.usage.total_tokens, milliseconds };
}

async function compare() {
  const texts = lines();
  const query = at("query").value.trim();
  if (!texts.length) throw new Problem("There is no text; write at least one, one per line.");
  if (texts.length < 2 && !query) throw new Problem("There is one text only; write another one, or a query.");
  const found = await embed(texts, at("text-prompt").value);
  const asked = query ? await embed([query], at("query-prompt").value) : null;
  const start = performance.now();
  at("results").hidden = false;
  showNeighbours(texts, found.vectors, asked?.vectors[0]);
  const rows = products(found.vectors);
  showMatrix(texts, rows);
  showMap(texts, rows);
  showTimings(texts, found, asked, performance.now() - start);
  at("timings-title").focus();
  return `${texts.length} texts are compared.`;
}

function showNeighbours(texts, vectors, query) {
  at("nearest").hidden = !query;
  if (!query) return;
  const scored = texts.map((text, i) => ({ text, score: dot(query, vectors[i]) }));
  scored.sort((first, second) => second.score - first.score);
  at("neighbours").replaceChildren(
    ...scored.slice(0, NEAREST).map(({ text, score }) => element("li", {}, element("b", {}, score.toFixed(3)), text)),
  );
}

function showMatrix(texts, rows) {
  at("pairs").hidden = texts.length < 2;
  const shown = rows.slice(0, IN_MATRIX).map((row) => row.slice(0, IN_MATRIX));
  const names = texts.slice(0, IN_MATRIX);
  const [low, high] = drawMatrix(at("matrix"), at("matrix-value"), names, shown, "Cosines of the texts");
  const part = texts.length > IN_MATRIX ? `The first ${IN_MATRIX} of ${texts.length} texts. ` : "";
  at("matrix-note").textContent = `${part}Cosines, from ${low.toFixed(2)} (pale) to ${high.toFixed(2)} (dark).`;
}

function showMap(texts, rows) {
  at("plane").hidden = texts.length < 3;
  if (texts.length < 3) return;
  const [across, up] = principalAxes(rows);
  drawMap(at("map"), at("map-value"), texts, across.places, up.places);
  at("map-note").textContent =
    `Principal components: the horizontal axis has ${percent(across.share)} of the variance, the vertical one ${percent(up.share)}. Texts that are near each other here may differ in the rest.`;
  const places = texts.map((text, i) => [`${i + 1} ${short(text, 80)}`, across.places[i].toFixed(3), up.places[i].toFixed(3)]);
  drawTable(at("map-table"), "Places of the texts", ["Text", "Horizontal", "Vertical"], places);
}

function showTimings(texts, found, asked, drawing) {
  const facts = {
    Model: model().id,
    Dimensions: model().dimensions,
    Texts: texts.length,
    "Tokens read": found.tokens + (asked?.tokens ?? 0),
    "Embedding the texts": `${found.milliseconds.toFixed(0)} ms`,
    ...(asked && { "Embedding the query": `${asked.milliseconds.toFixed(0)} ms` }),
    "Texts per second": (texts.length / (found.milliseconds / 1000)).toFixed(0),
    "Drawing": `${drawing.toFixed(0)} ms`,
  };
  at("timings").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))),
  );
}

// Memory tokens

let view = null;

async function lookAtMemory() {
  const text = at("memory-text").value.trim() || lines()[0];
  if (!text) throw new Problem("There is no text to look into; write one.");
  const prompt = at("text-prompt").value;
  const body = { model: model().id, text, ...(prompt && { input_type: prompt }) };
  const { answer, milliseconds } = await ask("memory-tokens", body);
  view = answer;
  at("memory").hidden = false;
  const names = view.memory.map((_, i) => `memory ${i + 1}`);
  const [low, high] = drawMatrix(at("cosines"), at("cosines-value"), names, view.cosines, "Cosines of the memory tokens");
  const others = view.cosines.flatMap((row, i) => row.filter((_, j) => i !== j));
  const mean = others.reduce((sum, value) => sum + value, 0) / others.length;
  at("cosines-note").textContent = others.length
    ? `Cosines before pooling, from ${low.toFixed(2)} (pale) to ${high.toFixed(2)} (dark); ${mean.toFixed(2)} on average. 1 would mean that they all say the same.`
    : "There is one memory token, so there is nothing to compare.";
  showAttention(names);
  return `${names.length} memory tokens of “${short(text)}”, ${milliseconds.toFixed(0)} ms.`;
}

/** Return tokens as they are shown: the memory tokens by their numbers. */
function tokenNames() {
  return view.tokens.map((text, place) => {
    const memory = view.memory.indexOf(place);
    return memory < 0 ? text : ` [memory ${memory + 1}] `;
  });
}

function showAttention(names) {
  const tokens = tokenNames().map((name, place) => (view.memory.includes(place) ? name.trim() : `“${name.trim()}”`));
  const rows = view.attention.map((shares, i) => {
    const order = [...shares.keys()].slice(1).sort((a, b) => shares[b] - shares[a]);
    return [names[i], percent(shares[0]), ...order.slice(0, TOP_TOKENS).map((place) => `${tokens[place]} ${percent(shares[place])}`)];
  });
  const most = Math.max(...rows.map((row) => row.length - 2));
  const ranks = Array.from({ length: most }, (_, i) => `No. ${i + 1}`);
  drawTable(at("attention"), "The tokens that each memory token attends to most", ["Memory token", "First token", ...ranks], rows);
  at("which").replaceChildren(...names.map((name, i) => element("option", { value: String(i) }, name)));
  colourTokens();
}

function colourTokens() {
  drawTokens(at("coloured"), tokenNames(), view.attention[Number(at("which").value)]);
}

onSubmit(at("compare"), at("status"), compare);
onSubmit(at("memory-form"), at("memory-status"), lookAtMemory);
onSubmit(at("access"), at("status"), async () => {
  const written = at("token").value.trim();
  if (!/^[\w.~+/=-]+$/.test(written)) throw new Problem("A token has only letters, digits and -._~+/=; copy it again.");
  token = written;
  await listModels();
  at("token").value = "";
  at("access").hidden = true;
  at("model").focus();
  return "The token is accepted.";
});
at("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("compare").requestSubmit();
});
at("model").addEventListener("change", showMemoryForm);
at("which").addEventListener("change", colourTokens);
acceptFiles();
listModels().catch(show);

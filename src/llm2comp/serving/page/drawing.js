// Tables, a map and coloured tokens. Texts become text nodes and never markup.

const LOW = [236, 244, 252];
const HIGH = [8, 48, 107];
const WITH_NUMBERS = 12; // a larger matrix shows its numbers on hover, and to screen readers
const SVG = "http://www.w3.org/2000/svg";

/** Return an element with properties and children; a string becomes text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Return the start of a text. */
export function short(text, most = 40) {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

/** Colour an element by a share between 0 and 1; its letters are black or white, what reads better. */
function colour(target, share) {
  const part = Math.min(Math.max(share, 0), 1);
  const rgb = LOW.map((low, i) => Math.round(low + part * (HIGH[i] - low)));
  const [r, g, b] = rgb.map((one) => (one <= 10 ? one / 3294 : ((one / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  target.style.backgroundColor = `rgb(${rgb.join(" ")})`;
  target.style.color = luminance > 0.179 ? "#000" : "#fff"; // equal contrast, 4.6, at this luminance
}

/** Return the smallest and the largest number beside the diagonal. */
function range(rows) {
  const others = rows.flatMap((row, i) => [...row].filter((_, j) => i !== j));
  return others.length ? [Math.min(...others), Math.max(...others)] : [0, 1];
}

/**
 * Draw a table of cosines, with the numbers beside the diagonal from pale to dark.
 *
 * Says which numbers are the palest and the darkest.
 */
export function drawMatrix(place, readout, names, rows, caption) {
  const [low, high] = range(rows);
  const small = rows.length <= WITH_NUMBERS;
  const head = element("tr", {}, element("td"));
  names.forEach((name, i) => head.append(element("th", { scope: "col", title: name }, String(i + 1))));
  const body = element("tbody");
  rows.forEach((row, i) => {
    const line = element("tr", {}, element("th", { scope: "row", title: names[i] }, `${i + 1} ${short(names[i], 24)}`));
    [...row].forEach((value, j) => {
      const said = value.toFixed(2);
      const number = element("span", { className: small ? "" : "read" }, said);
      const cell = element("td", { title: `${i + 1} and ${j + 1}: ${said}` }, number);
      colour(cell, i === j ? 1 : (value - low) / Math.max(high - low, 1e-9));
      cell.addEventListener("pointerenter", () => {
        readout.textContent = `${said}: ${short(names[i])} / ${short(names[j])}`;
      });
      line.append(cell);
    });
    body.append(line);
  });
  const title = element("caption", { className: "read" }, caption);
  place.replaceChildren(element("table", { className: "matrix" }, title, element("thead", {}, head), body));
  readout.textContent = "";
  return [low, high];
}

/** Draw a table of texts. */
export function drawTable(place, caption, heading, rows) {
  const head = element("tr", {}, ...heading.map((one) => element("th", { scope: "col" }, one)));
  const lines = rows.map(([first, ...others]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...others.map((one) => element("td", {}, one))),
  );
  place.replaceChildren(
    element("table", {}, element("caption", { className: "read" }, caption), element("thead", {}, head), element("tbody", {}, ...lines)),
  );
}

/** Draw points with their numbers; both axes have the same scale. */
export function drawMap(place, readout, texts, across, up) {
  const width = Math.max(place.clientWidth, 280); // so that a dot has the same size on a phone
  const [height, margin] = [Math.round(0.6 * width), 30];
  const spread = (values) => [Math.min(...values), Math.max(...values)];
  const [left, right] = spread(across);
  const [bottom, top] = spread(up);
  const scale = Math.min((width - 2 * margin) / Math.max(right - left, 1e-9), (height - 2 * margin) / Math.max(top - bottom, 1e-9));
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `Map of ${texts.length} texts; the table below has their places`);
  const labels = [];
  texts.forEach((text, i) => {
    const x = width / 2 + scale * (across[i] - (left + right) / 2);
    const y = height / 2 - scale * (up[i] - (bottom + top) / 2);
    const point = document.createElementNS(SVG, "circle");
    for (const [name, value] of Object.entries({ cx: x, cy: y, r: texts.length > 200 ? 4 : 7 })) point.setAttribute(name, value);
    point.addEventListener("pointerenter", () => (readout.textContent = `${i + 1} ${short(text, 120)}`));
    picture.append(point);
    if (texts.length <= 60) {
      const label = document.createElementNS(SVG, "text");
      label.setAttribute("x", x + (x > width - 60 ? -24 : 10));
      label.setAttribute("y", y + 4);
      label.textContent = String(i + 1);
      labels.push(label);
    }
  });
  picture.append(...labels); // above all points
  place.replaceChildren(picture);
  readout.textContent = "";
}

/** Write tokens one after the other, coloured by their shares relative to the largest but the first. */
export function drawTokens(place, tokens, shares) {
  const largest = Math.max(...shares.slice(1), 1e-9);
  place.replaceChildren(
    ...tokens.map((token, i) => {
      const mark = element("span", { title: percent(shares[i]) }, token);
      if (i > 0) colour(mark, shares[i] / largest);
      return mark;
    }),
  );
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

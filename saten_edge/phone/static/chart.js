// Bars of latency, one group per input size, drawn anew after each turn.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 340;
const BAR = 14;
const ROW = 38;
const HEAD = 26;

/**
 * groups: [{title, bars: [{name, tone, value, text}]}], value in milliseconds or null.
 * tone: CSS class of the bar.
 */
export function drawBars(svg, groups) {
  const most = Math.max(1e-9, ...groups.flatMap(({ bars }) => bars.map(({ value }) => value ?? 0)));
  const height = groups.reduce((sum, { bars }) => sum + HEAD + ROW * bars.length, 0);
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
  const parts = [];
  let y = 0;
  for (const { title, bars } of groups) {
    parts.push(element("text", { x: 0, y: y + 16, class: "group" }, title));
    y += HEAD;
    for (const { name, tone, value, text } of bars) {
      parts.push(element("text", { x: 0, y: y + 11, class: "name" }, name));
      parts.push(element("text", { x: WIDTH, y: y + 11, class: "value" }, text));
      parts.push(element("rect", { x: 0, y: y + 16, width: WIDTH, height: BAR, rx: 3, class: "track" }));
      if (value !== null) {
        const width = Math.max(3, (WIDTH * value) / most);
        parts.push(element("rect", { x: 0, y: y + 16, width, height: BAR, rx: 3, class: tone }));
      }
      y += ROW;
    }
  }
  const said = groups.map(({ title, bars }) => `${title}: ${bars.map(({ name, text }) => `${name} ${text}`).join(", ")}`);
  svg.setAttribute("aria-label", said.join(". "));
  svg.replaceChildren(...parts);
}

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

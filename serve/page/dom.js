/**
 * Small helpers over the DOM. Elements are made from text only, never from markup: names, messages and prompts come
 * from files and servers that nobody vouches for.
 */

export const byId = (id) => document.getElementById(id);

/** An element with properties (`className`, `textContent`, ...), `aria-*` and `data-*` attributes, and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Text with control, direction and other invisible characters as escapes, as in zsad's report pages. */
export function printable(text) {
  const invisible = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;
  return String(text).replace(invisible, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Arrow keys, Home and End move the focus among the buttons of `container`; only one of them is a tab stop. */
export function roving(container) {
  container.addEventListener("keydown", (event) => {
    const buttons = [...container.querySelectorAll("button:not([hidden])")];
    const next = neighbour(event.key, buttons.indexOf(event.target.closest("button")), buttons.length);
    if (next === null) return;
    event.preventDefault();
    makeTabStop(buttons, buttons[next]);
    buttons[next].focus();
  });
}

/** Let Tab reach `button` and none of the others. */
export function makeTabStop(buttons, button) {
  for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
}

function neighbour(key, place, count) {
  if (place < 0) return null;
  const steps = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: count - 1 };
  return key in steps ? (steps[key] + count) % count : null;
}

let announcement = 0;

/** Have a screen reader say `text`, once things have been quiet for `delay_ms`; the last call wins. */
export function announce(text, delay_ms = 0) {
  clearTimeout(announcement);
  announcement = setTimeout(() => (byId("live").textContent = text), delay_ms);
}

/** A calibrated score for people: three decimals, up to six where they are needed to tell it from its threshold. */
export function scoreText(score, threshold) {
  if (score !== threshold) {
    if (score >= 0.9995 && score < 1) return "> 0.999";
    if (score > 0 && score < 0.0005) return "< 0.001";
    for (const digits of [3, 4, 5]) {
      if (score.toFixed(digits) !== threshold.toFixed(digits)) return score.toFixed(digits);
    }
    return score.toFixed(6);
  }
  return score.toFixed(3);
}

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

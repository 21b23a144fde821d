// The model's categories to choose from, where the server tells them in openapi.json. The field beside them takes any
// text, with or without them, and narrows a long list.
import { roving } from "./lists.js";

const MOST = 200; // names in the list at a time

/** Fills the list and keeps it and the field in step; without categories it stays hidden. */
export async function offerNames({ place, title, list, field }) {
  const names = new Map((await told()).map(({ id, name }) => [wordFor(id, name), name]));
  if (!names.size) return;
  title.textContent = `Choose from ${names.size}`;
  place.hidden = false;

  const unfinished = () => {
    const last = wordsOf(field.value).at(-1) ?? "";
    return names.has(last) ? "" : last;
  };
  const refresh = () => {
    const chosen = new Set(wordsOf(field.value));
    for (const { firstChild: button } of list.children) button.setAttribute("aria-pressed", String(chosen.has(button.value)));
  };
  const fill = () => {
    const part = unfinished().toLowerCase();
    const fitting = [...names].filter(([, name]) => name.toLowerCase().includes(part)).slice(0, MOST);
    list.replaceChildren(...fitting.map(([word, name]) => item(word, name, choose)));
    roving(list);
    refresh();
  };
  const choose = (word) => {
    const words = wordsOf(field.value).filter((one) => one !== unfinished());
    const kept = words.includes(word) ? words.filter((one) => one !== word) : [...words, word];
    field.value = kept.join(", ");
    refresh();
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  field.addEventListener("input", () => list.contains(document.activeElement) || fill());
  fill();
}

async function told() {
  try {
    const response = await fetch("openapi.json");
    const categories = response.ok ? (await response.json())["x-categories"] : [];
    return Array.isArray(categories) ? categories : [];
  } catch {
    return [];
  }
}

/** A name as the field takes it; where that would be read as something else, the id. */
function wordFor(id, name) {
  return /,|^\s|\s$|^\[|^-?\d+$/.test(name) ? String(id) : name;
}

/** The names and ids that the field has: a JSON list, or text with commas between. */
function wordsOf(text) {
  if (text.trim().startsWith("[")) {
    try {
      return JSON.parse(text).map(String);
    } catch {
      return [];
    }
  }
  return text.split(",").map((one) => one.trim()).filter(Boolean);
}

function item(word, name, choose) {
  const made = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", value: word, textContent: name });
  button.addEventListener("click", () => choose(word));
  made.append(button);
  return made;
}
